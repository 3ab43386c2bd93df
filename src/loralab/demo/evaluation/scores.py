"""Scores of drawings, next to those of real pictures and of chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from loralab.demo import images_dir
from loralab.demo.evaluation.content import ContentMatcher
from loralab.demo.evaluation.drawing import Subject, held_out_subjects
from loralab.demo.evaluation.style import STYLES, fit_classifier, real_tiles
from loralab.demo.icons import Icons, to_picture, to_tile

NEAREST = 5


@dataclass(frozen=True)
class Score:
    """What a set of pictures shows.

    Attributes:
        content_top1: Share whose nearest real icon is of the right subject, in [0, 1].
        content_top5: Share with the right subject among the five nearest.
        styles: Style -> share, all of `STYLES`.
        nearest: What each picture looks most like, in order.
    """

    content_top1: float
    content_top5: float
    styles: dict[str, float]
    nearest: list[str]

    def shares(self) -> dict[str, Any]:
        """Return the shares as plain data."""
        return {
            "content_top1": self.content_top1,
            "content_top5": self.content_top5,
            "styles": self.styles,
        }


class Judge:
    """Compares pictures with the real icons."""

    def __init__(self, icons: Icons) -> None:
        """Fit the classifier of styles on all subjects but the held-out ones."""
        self.subjects: list[Subject] = held_out_subjects(icons)
        self.matcher = ContentMatcher(icons)
        self.names = {label: parts[0] for label, parts in icons.captions.items()}
        labels = icons.labels
        self._positions = {label: index for index, label in enumerate(labels)}
        held_out = {subject.label for subject in self.subjects}
        seen = torch.tensor([label not in held_out for label in labels])
        real = real_tiles(icons)
        self.classifier = fit_classifier({style: tiles[seen] for style, tiles in real.items()})
        self._unseen = {style: tiles[~seen] for style, tiles in real.items()}

    def score(self, labels: Sequence[str], pictures: Sequence[Tensor]) -> Score:
        """Score pictures by what they should show.

        Args:
            labels: The right subject of each.
            pictures: (3, H, W) uint8, sizes may differ.
        """
        tiles = torch.stack([to_tile(picture.float() / 255) for picture in pictures])
        ranking = self.matcher.rank(tiles)
        right = ranking == torch.tensor([self._positions[label] for label in labels])[:, None]
        found = Counter(self.classifier.classify(tiles))
        return Score(
            content_top1=float(right[:, :1].any(1).double().mean()),
            content_top5=float(right[:, :NEAREST].any(1).double().mean()),
            styles={style: found[style] / len(tiles) for style in STYLES},
            nearest=[self.matcher.labels[index] for index in ranking[:, 0]],
        )

    def real_pictures(self) -> list[Tensor]:
        """Return the demo's own validation images, in the order of the subjects."""
        folder = images_dir("validation")
        found = {}
        for path in folder.glob("*.png"):
            name = path.with_suffix(".txt").read_text(encoding="utf-8").split(", ")[1]
            with Image.open(path) as image:
                found[name] = (to_picture(image) * 255).round().byte()
        return [found[subject.parts[0]] for subject in self.subjects]

    def chance(self) -> Score:
        """Return what pictures drawn by lot would score."""
        count = len(self.names)
        return Score(1 / count, NEAREST / count, dict.fromkeys(STYLES, 1 / len(STYLES)), [])

    def names_of(self, score: Score) -> list[str]:
        """Return what the pictures look most like, as captions spell it."""
        return [self.names[label] for label in score.nearest]

    def style_accuracy(self) -> float:
        """Return the share of held-out real icons whose style is recognised, over all styles."""
        right = [
            found == style
            for style, tiles in self._unseen.items()
            for found in self.classifier.classify(tiles)
        ]
        return sum(right) / len(right)

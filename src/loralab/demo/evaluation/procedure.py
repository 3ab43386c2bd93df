"""The evaluation of a run: draw with the base and with the adapter, compare, collect."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from loralab.demo.evaluation.drawing import GUIDANCE_SCALE, NUM_STEPS, KeptDrawings, Painter
from loralab.demo.evaluation.scores import Judge, Score
from loralab.demo.evaluation.sheet import draw_sheet
from loralab.demo.icons import read_icons, to_picture
from loralab.models.family import ModelFamily

VERSION = 1  # of the procedure: figures of two versions do not compare
OWN_WORD = "noto"  # the base's word for the style that the demo's images were made from
TRIGGER = STYLE = "cyanotype"
Switch = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        subjects: What was drawn.
        rounds: Drawings of each subject.
        num_candidates: Subjects that a drawing could be taken for.
        base: The base, asked in its own words.
        base_with_trigger: The base, asked with the LoRA's trigger word, which it does not know.
        lora: The LoRA.
        real: Real pictures in the LoRA's style: the best that these procedures can say.
        chance: A picture drawn by lot.
        style_accuracy: Of the classifier of styles, on real icons it has not seen.
        seconds: What drawing and comparing took.
        sheet: The first drawing of each subject.
    """

    subjects: list[str]
    rounds: int
    num_candidates: int
    base: Score
    base_with_trigger: Score
    lora: Score
    real: Score
    chance: Score
    style_accuracy: float
    seconds: dict[str, float]
    sheet: Image.Image

    def picture(self) -> Tensor:
        """Return the sheet as (3, H, W) in [0, 1]."""
        return to_picture(self.sheet)

    def figures(self) -> dict[str, float]:
        """Return the figures for a logger."""
        return {
            "quality/content_top1": self.lora.content_top1,
            "quality/content_top5": self.lora.content_top5,
            "quality/style_share": self.lora.styles[STYLE],
            "quality/content_top1_base": self.base.content_top1,
            "quality/content_top5_base": self.base.content_top5,
            "quality/style_share_base": self.base_with_trigger.styles[STYLE],
        }

    def as_plain(self) -> dict[str, Any]:
        """Return everything but the picture, as plain data."""
        scores = {
            "base": self.base,
            "base_with_trigger": self.base_with_trigger,
            "lora": self.lora,
            "real": self.real,
            "chance": self.chance,
        }
        return {
            "version": VERSION,
            "style": STYLE,
            "drawings_per_subject": self.rounds,
            "candidates": self.num_candidates,
            "sampling": {"steps": NUM_STEPS, "guidance_scale": GUIDANCE_SCALE},
            "scores": {name: score.shares() for name, score in scores.items()},
            "style_accuracy_on_real_icons": self.style_accuracy,
            "seconds": self.seconds,
            "drawings_look_like": {
                name: {
                    subject: scores[name].nearest[index :: len(self.subjects)]
                    for index, subject in enumerate(self.subjects)
                }
                for name in ("base", "base_with_trigger", "lora")
            },
        }


def evaluate(
    family: ModelFamily,
    *,
    base_path: Path,
    base_options: Mapping[str, Any],
    as_base: Switch,
    as_lora: Switch,
    rounds: int,
    cache: Path,
    report: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Draw the held-out subjects with the base and with the adapter, and score the drawings.

    Args:
        family: The demo base and its adapter.
        base_path: Folder of the base.
        base_options: What it was loaded with, plain data.
        as_base: Makes a block in which the model is the base alone.
        as_lora: Makes a block in which the adapter works.
        rounds: Drawings of each subject, each with noise of its own.
        cache: Folder where drawings of the base are kept for other runs.
        report: Is told what is being done.

    Raises:
        OSError: The cache cannot be written.
    """
    clock = [time.perf_counter()]
    judge = Judge(read_icons())
    painter = Painter(family, judge.subjects)
    kept = KeptDrawings(painter, cache, base=base_path, options=base_options)
    count = f"{len(judge.subjects)} subjects × {rounds}"

    clock.append(time.perf_counter())
    report(f"drawing {count} with the base")
    with as_base():
        own = _draw(kept.draw, OWN_WORD, rounds)
        triggered = _draw(kept.draw, TRIGGER, rounds)
    clock.append(time.perf_counter())
    report(f"drawing {count} with the LoRA")
    with as_lora():
        adapted = _draw(painter.draw, TRIGGER, rounds)
    clock.append(time.perf_counter())

    labels = [subject.label for subject in judge.subjects]
    real = judge.real_pictures()
    base, base_with_trigger, lora = (
        judge.score(labels * rounds, drawings) for drawings in (own, triggered, adapted)
    )
    sheet = draw_sheet(
        [judge.names[label] for label in labels],
        {
            f"base\n“{OWN_WORD}, …”": (own, judge.names_of(base)),
            f"base\n“{TRIGGER}, …”": (triggered, judge.names_of(base_with_trigger)),
            f"LoRA\n“{TRIGGER}, …”": (adapted, judge.names_of(lora)),
            f"real {STYLE}": (real, None),
        },
    )
    real_score, accuracy = judge.score(labels, real), judge.style_accuracy()
    clock.append(time.perf_counter())
    parts = ("preparing", "base", "lora", "comparing")
    return Evaluation(
        subjects=labels,
        rounds=rounds,
        num_candidates=len(judge.names),
        base=base,
        base_with_trigger=base_with_trigger,
        lora=lora,
        real=real_score,
        chance=judge.chance(),
        style_accuracy=accuracy,
        seconds={
            part: round(end - start, 1)
            for part, (start, end) in zip(parts, pairwise(clock), strict=True)
        },
        sheet=sheet,
    )


def _draw(draw: Callable[..., list[Tensor]], word: str, rounds: int) -> list[Tensor]:
    return [drawing for seed in range(rounds) for drawing in draw(word, seed=seed)]

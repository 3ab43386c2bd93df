"""Drawings of the held-out subjects, by the base or with an adapter; those of the base are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from loralab.demo.concepts import list_canvases
from loralab.demo.icons import Icons
from loralab.demo.sources import CANVASES
from loralab.files import replacing
from loralab.models.family import ModelFamily
from loralab.models.sampling import sample_images

NUM_STEPS, GUIDANCE_SCALE = 20, 4.0
SAMPLER = "ddim 1"  # a change of the sampler is a new number: kept drawings are made anew
AT_ONCE = 24


@dataclass(frozen=True)
class Subject:
    """A subject that the demo's LoRA never sees.

    Attributes:
        label: Its name among the icons.
        parts: Of its caption.
        size: (height, width) of its canvas in pixels.
    """

    label: str
    parts: tuple[str, ...]
    size: tuple[int, int]

    def prompt(self, word: str) -> str:
        """Return the caption in a style, as the demo's caption files spell it."""
        return ", ".join((word, *self.parts[:3]))


def held_out_subjects(icons: Icons) -> list[Subject]:
    """Return the subjects of the demo's validation images."""
    return [
        Subject(label, icons.captions[label], CANVASES[canvas])
        for label, canvas in list_canvases("validation").items()
    ]


class Painter:
    """Draws the subjects with a model as it is at that moment, adapter on or off."""

    def __init__(self, family: ModelFamily, subjects: Sequence[Subject]) -> None:
        """Keep the model; its autoencoder is loaded now."""
        self.family = family
        self.subjects = subjects
        self._device = next(family.denoiser.parameters()).device
        self._codec = family.load_codec().to(self._device)

    def draw(self, word: str, *, seed: int) -> list[Tensor]:
        """Return a drawing of each subject, (3, H, W) uint8.

        Args:
            word: The style's word in the prompt.
            seed: Of the start noise.
        """
        drawings: dict[str, Tensor] = {}
        for size in dict.fromkeys(subject.size for subject in self.subjects):
            group = [subject for subject in self.subjects if subject.size == size]
            pictures = self._sample([subject.prompt(word) for subject in group], size, seed)
            pixels = (pictures * 255).round().byte()
            drawings |= {subject.label: drawn for subject, drawn in zip(group, pixels, strict=True)}
        return [drawings[subject.label] for subject in self.subjects]

    def settings(self) -> dict[str, Any]:
        """Return how it draws: what a drawing depends on beside the weights, word and seed."""
        return {
            "sampler": SAMPLER,
            "steps": NUM_STEPS,
            "guidance_scale": GUIDANCE_SCALE,
            "at_once": AT_ONCE,
            "dtype": str(next(self.family.denoiser.parameters()).dtype),
            "schedule": dict(self.family.schedule_config),
            "subjects": [(subject.prompt(""), subject.size) for subject in self.subjects],
        }

    def _sample(self, prompts: Sequence[str], size: tuple[int, int], seed: int) -> Tensor:
        facts = self.family.facts
        with torch.autocast(self._device.type, enabled=False):
            return sample_images(
                denoiser=self.family.denoiser,
                conditioner=self.family.conditioner,
                codec=self._codec,
                schedule_config=self.family.schedule_config,
                prompts=prompts,
                negative_prompt="",
                num_steps=NUM_STEPS,
                guidance_scale=GUIDANCE_SCALE,
                seed=seed,
                height=size[0],
                width=size[1],
                latent_channels=facts.latent_channels,
                vae_factor=facts.vae_factor,
                prompts_at_once=AT_ONCE,
            )


class KeptDrawings:
    """The base's drawings on disk, since every run on it needs the same ones."""

    def __init__(
        self, painter: Painter, folder: Path, *, base: Path, options: Mapping[str, Any]
    ) -> None:
        """Keep them in `folder`; they hold for these files of `base`, loaded with `options`."""
        self.painter = painter
        self.folder = folder
        self._origin = {"base": _folder_digest(base), "options": dict(options)}

    def draw(self, word: str, *, seed: int) -> list[Tensor]:
        """Return kept drawings, or make and keep them; see `Painter.draw`.

        Raises:
            OSError: They cannot be written.
        """
        asked = {**self._origin, **self.painter.settings(), "word": word, "seed": seed}
        text = json.dumps(asked, sort_keys=True, default=str)
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
        labels = [subject.label for subject in self.painter.subjects]
        try:
            kept = load_file(path)
            return [kept[label] for label in labels]
        except (OSError, SafetensorError, KeyError):  # not there, or not whole
            drawings = self.painter.draw(word, seed=seed)
        content = {label: d.contiguous() for label, d in zip(labels, drawings, strict=True)}
        with replacing(path) as part:
            save_file(content, part)
        return drawings


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()

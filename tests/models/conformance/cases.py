"""The families under test. A new family adds one case here and passes the files beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from tests.tiny import (
    PROJECTION,
    WIDTH,
    WIDTH_2,
    make_tiny_sd1,
    make_tiny_sd2,
    make_tiny_sdxl,
)

Record = Callable[[str, float], None]  # keeps a figure beside a test's result; a plain number


@dataclass(frozen=True)
class Case:
    """One family.

    Attributes:
        make: Writes its tiny folder.
        pipeline: diffusers' pipeline of the family: the reference.
        width: Features of a token as the UNet reads it.
        pooled_width: Features of the pooled text; None without.
        text_modules: Adapted by `sd_scripts` in each text encoder of the tiny folder.
    """

    name: str
    make: Callable[..., Path]
    pipeline: Any
    width: int
    pooled_width: int | None
    text_modules: dict[str, int]

    def load_pipeline(self, folder: Path) -> Any:
        """Return diffusers' pipeline of the tiny folder."""
        options = {} if self.name == "sdxl" else {"safety_checker": None}
        pipeline = self.pipeline.from_pretrained(folder, local_files_only=True, **options)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


CASES = (
    Case("sd1", make_tiny_sd1, StableDiffusionPipeline, WIDTH, None, {"text_encoder": 12}),
    Case("sd2", make_tiny_sd2, StableDiffusionPipeline, WIDTH, None, {"text_encoder": 12}),
    Case(
        "sdxl",
        make_tiny_sdxl,
        StableDiffusionXLPipeline,
        WIDTH + WIDTH_2,
        PROJECTION,
        {"text_encoder": 18, "text_encoder_2": 12},
    ),
)

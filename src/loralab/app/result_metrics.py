"""The user's CLIP model as a judge of previews: its check, its callback, what people read of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from loralab.app.held_out import choose_probe
from loralab.app.processes import is_main_process
from loralab.config.choices import ImageSet, OnBadImage
from loralab.config.records import RunConfig
from loralab.data.dataset import Item, read_pixels
from loralab.errors import DataError
from loralab.models.clip import ClipJudge, check_clip
from loralab.training.callbacks.preview import Preview
from loralab.training.callbacks.result_metrics import ResultMetrics

if TYPE_CHECKING:
    from loralab.app.preflight import Survey

_WORDS = {
    "clip_prompt": "pictures follow their prompts",
    "clip_image": "pictures resemble the images",
    "clip_image_max": "pictures resemble the nearest image",
}


def check_result_metrics(config: RunConfig) -> tuple[str, ...]:
    """Check the CLIP model, if one is asked for; return the prompts that are too long for it.

    Raises:
        ModelError: Its folder cannot be used.
    """
    path = config.result_metrics.clip_path
    return () if path is None else tuple(check_clip(path, config.preview.prompts))


def result_metrics(config: RunConfig, survey: Survey, preview: Preview) -> list[ResultMetrics]:
    """Return the callback that judges previews, or nothing; only the main process draws them.

    Raises:
        ModelError: The CLIP model is damaged.
    """
    if config.result_metrics.clip_path is None or not is_main_process():
        return []
    images = list(pictures_of(config, compared_images(config, survey)))
    return [ResultMetrics(preview, ClipJudge(config.result_metrics.clip_path), images)]


def compared_images(config: RunConfig, survey: Survey) -> tuple[Item, ...]:
    """Return the images that previews are compared with, chosen by content; no class images."""
    wants_held_out = config.result_metrics.compare_with is ImageSet.held_out
    items = survey.validation_items if wants_held_out else survey.items
    return choose_probe(items, config.result_metrics.num_images)


def pictures_of(config: RunConfig, items: Iterable[Item]) -> Iterator[torch.Tensor]:
    """Yield the images that can be read, (3, H, W) in [0, 1].

    Raises:
        DataError: One cannot be read, and bad images are not to be skipped.
    """
    for item in items:
        try:
            yield read_pixels(item) / 2 + 0.5
        except DataError:
            if config.data.on_bad_image is OnBadImage.stop:
                raise


def plan_of_result_metrics(config: RunConfig, survey: Survey) -> list[tuple[str, str]]:
    """Return what the plan says of the judge."""
    options = config.result_metrics
    if options.clip_path is None:
        return []
    count = len(compared_images(config, survey))
    text = (
        f"CLIP of {options.clip_path}: {len(config.preview.prompts)} prompts, {count} "
        f"{options.compare_with.name} images"
    )
    if survey.cut_prompts:
        text += f"; it cuts off the end of {len(survey.cut_prompts)}: {survey.cut_prompts[0]!r}"
    return [("result metrics", text)]


def describe_result_metrics(figures: Mapping[str, float]) -> list[str]:
    """Return a line for every figure of the last previews, the base's beside it."""
    return [
        f"CLIP, {words}: {figures[f'result/{name}']:.3f}, base {figures[f'result/{name}_base']:.3f}"
        for name, words in _WORDS.items()
        if f"result/{name}" in figures
    ]

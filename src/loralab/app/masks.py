"""Configuration -> masks of the training images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from loralab.app.sources import Sources
from loralab.config.choices import Masks as Choice
from loralab.config.records import RunConfig
from loralab.data.masks import Masks
from loralab.errors import DataError
from loralab.models.family import ModelFacts


def with_masks(config: RunConfig, sources: Sources, facts: ModelFacts) -> Sources:
    """Return the sources, those of training images with their masks; class images have none.

    Raises:
        DataError: Naming every image without a mask.
    """
    data = config.data
    if data.masks is Choice.none:
        return sources
    folder = Path(data.mask_dir) if data.mask_dir is not None else None
    masks = Masks(data.masks.name, folder=folder, floor=data.mask_floor, factor=facts.vae_factor)
    problems = masks.problems(record for source in sources.training for record in source.records)
    if problems:
        raise DataError(*problems)
    return replace(
        sources, training=tuple(replace(source, masks=masks) for source in sources.training)
    )

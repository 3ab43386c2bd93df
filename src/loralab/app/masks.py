"""Configuration -> masks of the training images and of those that are measured."""

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
    """Return the sources with their masks; class images have none.

    Held-out images have them too: the loss on them is to be that of training.

    Raises:
        DataError: Naming every image without a mask.
    """
    data = config.data
    if data.masks is Choice.none:
        return sources
    folder = Path(data.mask_dir) if data.mask_dir is not None else None
    masks = Masks(data.masks.name, folder=folder, floor=data.mask_floor, factor=facts.vae_factor)
    training, held_out = (
        tuple(replace(source, masks=masks) for source in group)
        for group in (sources.training, sources.held_out)
    )
    problems = masks.problems(
        record for source in (*training, *held_out) for record in source.records
    )
    if problems:
        raise DataError(*problems)
    return replace(sources, training=training, held_out=held_out)

"""Configuration -> masks of the images."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from pathlib import Path

from loralab.app.sources import Sources
from loralab.config.choices import Masks as Choice
from loralab.config.choices import OnBadImage
from loralab.config.records import RunConfig
from loralab.config.source_records import given_sources
from loralab.data.masks import Masks, mask_problems
from loralab.data.sources import Source
from loralab.errors import Problem
from loralab.models.family import ModelFacts


def with_masks(config: RunConfig, sources: Sources, facts: ModelFacts) -> Sources:
    """Return the sources with their masks; class images have none.

    Held-out images have them too: the loss on them is to be that of training. An image without a
    usable mask is an unusable image: the run stops, or goes on without it.
    """
    data = config.data
    if data.masks is Choice.none:
        return sources
    given = zip(sources.training, given_sources(data).values(), strict=True)
    folders = {source.name: options.mask_dir for source, options in given}
    training, held_out = (
        [replace(s, masks=_masks(config, folders.get(s.name, data.mask_dir), facts)) for s in group]
        for group in (sources.training, sources.held_out)
    )
    found = mask_problems(
        (source.masks, record)
        for source in (*training, *held_out)
        if source.masks
        for record in source.records
    )
    sources = replace(
        sources, training=_without(training, found), held_out=_without(held_out, found)
    )
    if data.on_bad_image is OnBadImage.stop:
        return replace(sources, problems=(*sources.problems, *dict.fromkeys(found.values())))
    skipped = [Problem(str(path), problem.message) for path, problem in found.items()]
    return replace(sources, skipped=(*sources.skipped, *skipped))


def _without(sources: list[Source], paths: Container[Path]) -> tuple[Source, ...]:
    return tuple(
        replace(source, records=tuple(r for r in source.records if r.path not in paths))
        for source in sources
    )


def _masks(config: RunConfig, mask_dir: str | None, facts: ModelFacts) -> Masks:
    folder = Path(mask_dir) if mask_dir is not None else None
    data = config.data
    return Masks(data.masks.name, folder=folder, floor=data.mask_floor, factor=facts.vae_factor)

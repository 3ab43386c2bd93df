"""Configuration -> the size that each image is trained at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

from loralab.config.data_rules import parse_phase
from loralab.config.records import RunConfig
from loralab.data.buckets import make_buckets, parse_size, square_bucket
from loralab.data.crop import Fit, fit_nearest, fit_without_upscale
from loralab.data.resolution import Phase
from loralab.errors import ConfigError, Problem
from loralab.models.family import ModelFacts


def image_fit(config: RunConfig, facts: ModelFacts | None) -> Fit:
    """Return how an image of a given size is scaled and cut.

    Args:
        config: The run.
        facts: The base's facts, or None when they are not known; its step is not checked then.

    Raises:
        ConfigError: When sizes do not suit the base.
        DataError: When the limits of sides leave no bucket.
    """
    options, area = config.data.buckets, config.data.resolution**2
    if facts is not None and (problems := list(_step_problems(config, facts.bucket_step))):
        raise ConfigError(*problems)
    match = options.match.name
    if not options.enabled:
        return partial(fit_nearest, buckets=(square_bucket(area=area, step=options.step),))
    if options.no_upscale:
        return partial(fit_without_upscale, area=area, step=options.step)
    if options.sizes:
        sizes = tuple(parse_size(text) for text in options.sizes)
        return partial(fit_nearest, buckets=sizes, match=match)
    sizes = make_buckets(
        area=area, step=options.step, min_side=options.min_side, max_side=options.max_side
    )
    return partial(fit_nearest, buckets=sizes, match=match)


def resolution_phases(config: RunConfig, total_steps: int, steps_per_epoch: int) -> list[Phase]:
    """Return the sizes of epochs; a phase begins with the first epoch after its share."""
    epochs, phases = total_steps / steps_per_epoch, []
    for share, side in filter(None, map(parse_phase, config.data.resolution_schedule)):
        first = math.ceil(share * epochs - 1e-9)
        phases.append(Phase(first, side / config.data.resolution, config.data.buckets.step))
    return phases


def describe_phases(phases: Sequence[Phase], resolution: int) -> str:
    """Return the sizes by the epochs that they begin with."""
    return ", then ".join(
        f"{round(phase.scale * resolution)} px from epoch {phase.first_epoch + 1}"
        for phase in phases
    )


def _step_problems(config: RunConfig, step: int) -> Iterator[Problem]:
    options = config.data.buckets
    if options.sizes:
        for text in options.sizes:
            size = parse_size(text)
            if size.height % step or size.width % step:
                near = "x".join(
                    str(max(1, round(side / step)) * step) for side in (size.width, size.height)
                )
                yield Problem(
                    "data.buckets.sizes",
                    f"data.buckets.sizes has {text}; for this base sides must be multiples of "
                    f"{step}. Use {near}.",
                )
    elif options.step % step:
        yield Problem(
            "data.buckets.step",
            f"data.buckets.step is {options.step}; for this base it must be a multiple of {step}. "
            f"Use {max(1, round(options.step / step)) * step}.",
        )

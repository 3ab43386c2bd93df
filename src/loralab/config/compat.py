"""What `compat.kind` switches: the options with which a run behaves like another trainer's.

Ours is the better rule by default; a row here says which option restores the other one.
`docs/coming-from-sd-scripts.md` tells the reasons, row by row.
"""

from __future__ import annotations

from typing import Any

from loralab.config.choices import (
    AdapterKind,
    BucketMatch,
    Compat,
    DropoutPlace,
    NoiseRule,
    NoiseScheduleSource,
    Posterior,
    Reduction,
    ResizeFilter,
    SchedulePrecision,
    TagRule,
    WeightRule,
)
from loralab.config.records import RunConfig
from loralab.errors import Problem

SWITCHES: dict[Compat, dict[str, Any]] = {
    Compat.none: {},
    Compat.sd_scripts: {
        "objective.reduction": Reduction.by_count,
        "objective.weight_rule": WeightRule.sd_scripts,
        "objective.noise_rule": NoiseRule.sd_scripts,
        "objective.noise_schedule": NoiseScheduleSource.stable_diffusion,
        "objective.schedule_precision": SchedulePrecision.single,
        "adapter.dropout_place": DropoutPlace.inner,
        "data.buckets.match": BucketMatch.ratio,
        "data.resize_filter": ResizeFilter.area,
        "data.latent_cache.posterior": Posterior.frozen,
        "data.prior.rotate": False,
        "data.captions.tag_rule": TagRule.sd_scripts,
    },
}
"""Option -> the value it gets."""

ONLY_WITH = {"data.latent_cache.posterior": "data.latent_cache.enabled"}
"""Option -> the one without which it is not switched: there, too, uncached latents are redrawn."""


def apply_compat(config: RunConfig) -> list[Problem]:
    """Set every option of the chosen set, in place.

    Returns:
        A problem for each option that was given yet another value: neither our own nor the set's.
    """
    problems = []
    neutral = RunConfig()
    for key, value in SWITCHES[config.compat.kind].items():
        if key == "adapter.dropout_place" and config.adapter.kind is not AdapterKind.lora:
            continue  # dropout of the other kinds has one place only
        record, name = _record(config, key)
        if key in ONLY_WITH and not getattr(*_record(config, ONLY_WITH[key])):
            continue
        found, own = getattr(record, name), getattr(_record(neutral, key)[0], name)
        if found not in (own, value):
            problems.append(
                Problem(
                    key,
                    f"{key} is {_word(found)}, but compat.kind={config.compat.kind.name} sets it "
                    f"to {_word(value)}; leave one of them out.",
                )
            )
        setattr(record, name, value)
    return problems


def _record(config: RunConfig, key: str) -> tuple[Any, str]:
    """Return the record that holds an option, and the option's own name."""
    *groups, name = key.split(".")
    record: Any = config
    for group in groups:
        record = getattr(record, group)
    return record, name


def _word(value: Any) -> Any:
    return getattr(value, "name", value)

"""Rules of the learning-rate schedule: each kind has its own options and takes no others."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from loralab.config.choices import Schedule
from loralab.config.records import RunConfig
from loralab.errors import Problem

# Kind -> the options that it reads beside those of warm-up. `training.lr_schedules` has the curves.
SCHEDULE_OPTIONS: dict[str, tuple[str, ...]] = {
    "constant": (),
    "constant_with_warmup": (),
    "linear": (),
    "cosine": (),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("end_factor",),
    "polynomial": ("power", "end_factor"),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": ("decay_fraction", "end_factor"),
    "rex": (),
    "one_cycle": ("rise_fraction", "start_factor", "end_factor"),
    "step": ("step_size", "gamma", "unit"),
    "multistep": ("milestones", "gamma", "unit"),
    "exponential": ("step_size", "gamma", "unit"),
    "plateau": ("gamma", "patience", "threshold", "end_factor"),
}


def schedule_has_its_options(config: RunConfig) -> Iterator[Problem]:
    kind = config.scheduler.kind.name
    for name in dict.fromkeys(name for names in SCHEDULE_OPTIONS.values() for name in names):
        key, value = f"scheduler.{name}", getattr(config.scheduler, name)
        is_given = value not in (None, [])
        if is_given and name not in SCHEDULE_OPTIONS[kind]:
            readers = [other for other, names in SCHEDULE_OPTIONS.items() if name in names]
            yield Problem(
                key,
                f"{key} is {getattr(value, 'name', value)}, which scheduler.kind {kind} does not "
                f"read; leave it out, or choose scheduler={' or scheduler='.join(readers)}.",
            )
        elif not is_given and name in SCHEDULE_OPTIONS[kind]:
            yield Problem(
                key,
                f"{key} has no value, and scheduler.kind {kind} needs one; give it, or choose "
                f"scheduler={kind}, which gives every option a value.",
            )


def warmup_fits_the_schedule(config: RunConfig) -> Iterator[Problem]:
    scheduler, kind = config.scheduler, config.scheduler.kind
    name = "warmup_steps" if scheduler.warmup_steps else "warmup_fraction"
    length = getattr(scheduler, name)
    if kind is Schedule.constant_with_warmup and not length:
        yield Problem(
            "scheduler.warmup_steps",
            "scheduler.warmup_steps and scheduler.warmup_fraction are both 0, but scheduler.kind "
            "is constant_with_warmup; set one of them, or choose scheduler=constant.",
        )
    if kind is Schedule.one_cycle and length:
        yield Problem(
            f"scheduler.{name}",
            f"scheduler.{name} is {length:g}, but one_cycle rises by itself; set it to 0 and "
            "scheduler.rise_fraction to the share of steps it may take.",
        )
    if scheduler.warmup_start_factor and not length:
        yield Problem(
            "scheduler.warmup_start_factor",
            f"scheduler.warmup_start_factor is {scheduler.warmup_start_factor:g}, but there is no "
            "warm-up; set scheduler.warmup_steps or scheduler.warmup_fraction.",
        )


def milestones_ascend(config: RunConfig) -> Iterator[Problem]:
    milestones = config.scheduler.milestones
    if any(one >= other for one, other in pairwise([0, *milestones])):
        yield Problem(
            "scheduler.milestones",
            f"scheduler.milestones is {milestones}; it must be whole numbers above 0 that ascend.",
        )


SCHEDULE_RULES = (schedule_has_its_options, warmup_fits_the_schedule, milestones_ascend)

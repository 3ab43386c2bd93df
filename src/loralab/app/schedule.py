"""The learning-rate schedule of a run: from its record to a curve, and the curve as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loralab.config.choices import Schedule, StepUnit
from loralab.config.records import RunConfig
from loralab.config.schedule_rules import SCHEDULE_OPTIONS
from loralab.data.line_chart import save_line_chart
from loralab.errors import Problem
from loralab.training.lr_schedules import make_lr_multiplier

if TYPE_CHECKING:
    from loralab.app.preflight import Survey

CHART_FILE = "lr.png"
BLOCKS = "▁▂▃▄▅▆▇█"
POINTS = 40  # of the sparkline


def no_losses(step: int) -> Sequence[float]:
    """Return the losses that are known before the run: none."""
    return ()


def count_warmup_steps(config: RunConfig, total_steps: int) -> int:
    """Return the optimizer steps of warm-up; a fraction is rounded down, as in sd-scripts."""
    scheduler = config.scheduler
    return scheduler.warmup_steps or int(scheduler.warmup_fraction * total_steps)


def schedule_problems(
    config: RunConfig, *, total_steps: int, warmup_steps: int, steps_per_epoch: int
) -> list[Problem]:
    """Return what only the length of the run shows to be wrong."""
    problems = []
    if warmup_steps >= total_steps:
        problems.append(
            Problem(
                "scheduler.warmup_steps",
                f"scheduler.warmup_steps is {warmup_steps}; it must be below the {total_steps} "
                "steps of the run.",
            )
        )
    if config.scheduler.warmup_fraction and not warmup_steps:
        problems.append(
            Problem(
                "scheduler.warmup_fraction",
                f"scheduler.warmup_fraction is {config.scheduler.warmup_fraction:g}, which is less "
                f"than one of the {total_steps} steps of the run; set scheduler.warmup_steps, or "
                "scheduler.warmup_fraction=0.",
            )
        )
    length = _unit_length(config, steps_per_epoch)
    early = [place for place in config.scheduler.milestones if place * length < warmup_steps]
    if early:
        problems.append(
            Problem(
                "scheduler.milestones",
                f"scheduler.milestones holds {early[0]}, which is inside the {warmup_steps} steps "
                "of warm-up; put it later, or shorten the warm-up.",
            )
        )
    return problems


def lr_multiplier(
    config: RunConfig,
    survey: Survey,
    *,
    losses_before: Callable[[int], Sequence[float]] = no_losses,
) -> Callable[[int], float]:
    """Return the multiplier of the peak rate by optimizer step.

    Args:
        config: The run.
        survey: Its length.
        losses_before: Step -> val/loss of the validations made before it; plateau alone asks.
    """
    scheduler, warmup_steps = config.scheduler, survey.warmup_steps
    names = SCHEDULE_OPTIONS[scheduler.kind.name]
    own: dict[str, Any] = {name: getattr(scheduler, name) for name in names if name != "unit"}
    length = _unit_length(config, survey.steps_per_epoch)
    if "step_size" in own:
        own["step_size"] *= length
    if "milestones" in own:  # the curve counts from the end of warm-up
        own["milestones"] = [place * length - warmup_steps for place in own["milestones"]]
    if scheduler.kind is Schedule.plateau:
        own["losses_before"] = lambda step: losses_before(step + warmup_steps)
    return make_lr_multiplier(
        scheduler.kind.name,
        total_steps=survey.total_steps,
        warmup_steps=warmup_steps,
        warmup_start_factor=scheduler.warmup_start_factor,
        **own,
    )


def describe_schedule(config: RunConfig, survey: Survey) -> str:
    """Return the coming curve as a line of blocks, and where it begins and ends."""
    multiplier = lr_multiplier(config, survey)
    values = [multiplier(step) for step in spread(survey.total_steps, POINTS)]
    ends = f"first {multiplier(0):.3g}, last {multiplier(survey.total_steps - 1):.3g} of the peak"
    if config.scheduler.kind is Schedule.plateau:
        ends = f"first {multiplier(0):.3g} of the peak, then as val/loss has it"
    return f"{sparkline(values)}  {ends}"


def draw_schedule(config: RunConfig, survey: Survey, folder: Path) -> None:
    """Save the coming rate of every part as `lr.png`."""
    multiplier = lr_multiplier(config, survey)
    steps = spread(survey.total_steps, 1000)
    parts: dict[float, list[str]] = {}  # parts of one rate share a line
    for name, part in survey.parts.items():
        parts.setdefault(part.learning_rate, []).append(name)
    lines = {
        ", ".join(names): [(step, rate * multiplier(step)) for step in steps]
        for rate, names in parts.items()
    }
    title = f"learning rate, {config.scheduler.kind.name}"
    if config.scheduler.kind is Schedule.plateau:
        title += " (before any fall)"
    save_line_chart(folder / CHART_FILE, lines, title=title, x_label="optimizer step")


def sparkline(values: Sequence[float]) -> str:
    """Return one block for each value of at least 0; the largest is a full block."""
    top = max(values) or 1.0
    return "".join(BLOCKS[round(value / top * (len(BLOCKS) - 1))] for value in values)


def _unit_length(config: RunConfig, steps_per_epoch: int) -> int:
    return steps_per_epoch if config.scheduler.unit is StepUnit.epochs else 1


def spread(total_steps: int, most: int) -> list[int]:
    """Return the first step, the last one and evenly spread ones between."""
    count = min(total_steps, most)
    return [round(n * (total_steps - 1) / max(1, count - 1)) for n in range(count)]

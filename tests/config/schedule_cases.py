"""Broken and fine values for the rules of the schedule and of validation, as `test_rules` wants."""

from __future__ import annotations

from typing import Any

from loralab.config.choices import Schedule, StepUnit

HELD_OUT = {"validation.fraction": 0.1, "validation.every_n_steps": 10}
PLATEAU = {
    "scheduler.kind": Schedule.plateau,
    "scheduler.gamma": 0.5,
    "scheduler.patience": 2,
    "scheduler.threshold": 0.0,
    "scheduler.end_factor": 0.0,
}
MULTISTEP = {
    "scheduler.kind": Schedule.multistep,
    "scheduler.gamma": 0.1,
    "scheduler.unit": StepUnit.steps,
}
ONE_CYCLE = {
    "scheduler.kind": Schedule.one_cycle,
    "scheduler.rise_fraction": 0.3,
    "scheduler.start_factor": 0.04,
    "scheduler.end_factor": 0.0,
}

SCHEDULE_CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    (
        "schedule_has_its_options",
        {"scheduler.power": 2.0},
        "scheduler.power",
        {
            "scheduler.kind": Schedule.polynomial,
            "scheduler.power": 2.0,
            "scheduler.end_factor": 0.0,
        },
    ),
    (
        "schedule_has_its_options",
        {"scheduler.kind": Schedule.cosine_with_restarts},
        "scheduler.num_cycles",
        {"scheduler.kind": Schedule.cosine_with_restarts, "scheduler.num_cycles": 2},
    ),
    (
        "schedule_has_its_options",
        {"scheduler.kind": Schedule.multistep, "scheduler.gamma": 0.1, "scheduler.milestones": [5]},
        "scheduler.unit",
        MULTISTEP | {"scheduler.milestones": [5]},
    ),
    (
        "schedule_has_its_options",
        {"scheduler.unit": StepUnit.epochs},
        "scheduler.unit",
        MULTISTEP | {"scheduler.milestones": [5], "scheduler.unit": StepUnit.epochs},
    ),
    (
        "warmup_fits_the_schedule",
        {"scheduler.kind": Schedule.constant_with_warmup},
        "scheduler.warmup_steps",
        {"scheduler.kind": Schedule.constant_with_warmup, "scheduler.warmup_fraction": 0.1},
    ),
    (
        "warmup_fits_the_schedule",
        ONE_CYCLE | {"scheduler.warmup_steps": 5},
        "scheduler.warmup_steps",
        ONE_CYCLE,
    ),
    (
        "warmup_fits_the_schedule",
        ONE_CYCLE | {"scheduler.warmup_fraction": 0.1},
        "scheduler.warmup_fraction",
        ONE_CYCLE,
    ),
    (
        "warmup_fits_the_schedule",
        {"scheduler.warmup_start_factor": 0.1},
        "scheduler.warmup_start_factor",
        {"scheduler.warmup_start_factor": 0.1, "scheduler.warmup_steps": 5},
    ),
    (
        "milestones_ascend",
        MULTISTEP | {"scheduler.milestones": [50, 50]},
        "scheduler.milestones",
        MULTISTEP | {"scheduler.milestones": [50, 51]},
    ),
    (
        "milestones_ascend",
        MULTISTEP | {"scheduler.milestones": [0, 5]},
        "scheduler.milestones",
        MULTISTEP | {"scheduler.milestones": [1, 5]},
    ),
    ("watchers_have_something_to_watch", PLATEAU, "scheduler.kind", PLATEAU | HELD_OUT),
    *(
        (
            "watchers_have_something_to_watch",
            {key: value, **some_held_out},
            key,
            {key: value, **HELD_OUT},
        )
        for key, value in (("validation.patience", 3), ("validation.keep_best", True))
        for some_held_out in ({}, {"validation.fraction": 0.1})
    ),
    (
        "watchers_have_something_to_watch",
        {"validation.train_probe": True},
        "validation.train_probe",
        {"validation.train_probe": True, "validation.fraction": 0.1},
    ),
    (
        "improvement_is_waited_for",
        {"validation.min_improvement": 1.0},
        "validation.min_improvement",
        {"validation.min_improvement": 1.0, "validation.patience": 2, **HELD_OUT},
    ),
]

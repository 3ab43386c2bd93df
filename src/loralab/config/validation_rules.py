"""Rules of validation: what watches it needs images that are held out, and a cadence."""

from __future__ import annotations

from collections.abc import Iterator

from loralab.config.choices import Schedule
from loralab.config.records import RunConfig
from loralab.errors import Problem

NOISE_BANDS = ("low", "middle", "high")  # the words of val/loss_low_noise and its like


def holds_out_images(config: RunConfig) -> bool:
    """Tell whether some images are kept for validation."""
    validation = config.validation
    return bool(validation.fraction or validation.folder or validation.files)


def watchers_have_something_to_watch(config: RunConfig) -> Iterator[Problem]:
    validation = config.validation
    watchers = {
        "validation.patience": validation.patience,
        "validation.keep_best": validation.keep_best,
        "validation.train_probe": validation.train_probe,
        "export.keep_best": config.export.keep_best,
        "scheduler.kind": config.scheduler.kind is Schedule.plateau and "plateau",
    }
    for key, value in watchers.items():
        if not value:
            continue
        found = f"{key} is {str(value).lower()}"
        if not holds_out_images(config):
            yield Problem(
                key,
                f"{found}, but no image is held out; set validation.fraction, validation.folder or "
                "validation.files.",
            )
        elif validation.every_n_steps is None and key != "validation.train_probe":
            yield Problem(
                key,
                f"{found}, but validation.every_n_steps is null, so the end alone is measured; set "
                "it to a number of steps.",
            )


def improvement_is_waited_for(config: RunConfig) -> Iterator[Problem]:
    if config.validation.min_improvement and config.validation.patience is None:
        yield Problem(
            "validation.min_improvement",
            f"validation.min_improvement is {config.validation.min_improvement:g}, but nothing "
            "waits for it; set validation.patience, or validation.min_improvement=0.",
        )


VALIDATION_RULES = (watchers_have_something_to_watch, improvement_is_waited_for)

"""Rules of what is measured: it needs images that are held out, a cadence, or pictures."""

from __future__ import annotations

from collections.abc import Iterator

from loralab.config.choices import ImageSet, Schedule
from loralab.config.records import RunConfig
from loralab.errors import Problem

NOISE_BANDS = ("low", "middle", "high")  # the words of val/loss_low_noise and its like
RESULT_METRICS = ("result/clip_prompt", "result/clip_image", "result/clip_image_max")


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


def previews_are_there_to_be_judged(config: RunConfig) -> Iterator[Problem]:
    options = config.result_metrics
    if options.clip_path is None:
        return
    found = f"result_metrics.clip_path is {options.clip_path}"
    if not config.preview.prompts:
        yield Problem(
            "preview.prompts",
            f"preview.prompts is empty, but {found}, which judges previews; name prompts to draw, "
            "or set result_metrics.clip_path=null.",
        )
    if options.compare_with is ImageSet.held_out and not holds_out_images(config):
        yield Problem(
            "result_metrics.compare_with",
            "result_metrics.compare_with is held_out, but no image is held out; set "
            "validation.fraction, validation.folder or validation.files, or "
            "result_metrics.compare_with=training.",
        )


def metric_exists(config: RunConfig) -> Iterator[Problem]:
    metric, clip = config.optimized_metric, config.result_metrics.clip_path
    named = ("val/loss", "val/best_loss", *(f"val/loss_{band}_noise" for band in NOISE_BANDS))
    if metric in RESULT_METRICS and clip is None:
        yield Problem(
            "optimized_metric",
            f"optimized_metric is {metric}, but result_metrics.clip_path is null, so nothing "
            "measures it; name the folder of a CLIP model there, or set "
            "optimized_metric=val/loss.",
        )
    elif metric not in (*named, *RESULT_METRICS) and not metric.startswith("val/loss_at_timestep/"):
        yield Problem(
            "optimized_metric",
            f"optimized_metric is {metric}; it must be {', '.join((*named, *RESULT_METRICS))} or "
            "val/loss_at_timestep/NUMBER.",
        )


VALIDATION_RULES = (
    watchers_have_something_to_watch,
    improvement_is_waited_for,
    previews_are_there_to_be_judged,
    metric_exists,
)

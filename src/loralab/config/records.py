"""One run's configuration: every field we own, with its meaning and its allowed range.

The larger groups have files of their own beside this one.

Neutral defaults (0, false, null) live here; chosen values live in `conf/`; `???` marks what only
the user knows. Checks across fields are in `rules.py`. Records are not frozen, because OmegaConf
would make them read-only and Hydra then refuses every override; treat them as values all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from loralab.config.adapter_records import AdapterRecord, ExportRecord
from loralab.config.choices import (
    AverageUse,
    Compat,
    ImageSet,
    LoggerKind,
)
from loralab.config.data_records import DataRecord
from loralab.config.model_records import ModelRecord
from loralab.config.option import option
from loralab.config.training_records import ObjectiveRecord, SchedulerRecord, ValidationRecord


@dataclass(kw_only=True)
class EmaRecord:
    """Averaging of the adapter's weights."""

    enabled: bool = option(False, "Keep an exponential moving average beside the live weights.")
    decay: float = option(
        0.999, "Share of the old average in the new one, at each update.", low=0.0, high=0.999999
    )
    warmup: bool = option(
        False, "Let the decay of update n be at most (1 + n) / (10 + n); the first one copies."
    )
    start_step: int = option(0, "Steps in which the average is the live weights.", low=0)
    every_n_steps: int = option(1, "Steps between updates.", low=1)
    use_for: list[AverageUse] = option(
        list, "What takes the average: validation, preview, export; all else the live weights."
    )


@dataclass(kw_only=True)
class CompatRecord:
    """Behaviour of other trainers."""

    kind: Compat = option(Compat.none, "Whose behaviour to follow where ours differs.")
    kept_settings: dict[str, Any] = option(
        dict,
        "Settings of another program that mean something here in other words, or nothing; kept "
        "for settings.json.",
        affects_result=False,
    )


@dataclass(kw_only=True)
class LoggerRecord:
    """Where numbers and pictures go."""

    kind: LoggerKind = option(LoggerKind.none, "Logger.", affects_result=False)
    flush_seconds: int = option(
        30, "Longest time before TensorBoard files reach the disk.", low=1, affects_result=False
    )


@dataclass(kw_only=True)
class PreviewRecord:
    """Pictures drawn while training, at fixed seeds."""

    prompts: list[str] = option(
        list, "Prompts to draw; none draws no previews.", affects_result=False
    )
    negative_prompt: str = option("", "Negative prompt.", affects_result=False)
    steps: int = option(25, "Sampling steps.", low=1, high=500, affects_result=False)
    guidance_scale: float = option(
        7.5, "Classifier-free guidance; 1 is off.", low=1.0, affects_result=False
    )
    seed: int = option(0, "Seed of the pictures.", low=0, affects_result=False)
    every_n_steps: int | None = option(
        None, "Steps between previews; null draws at start and end.", low=1, affects_result=False
    )


@dataclass(kw_only=True)
class ResultMetricsRecord:
    """What a CLIP model on the user's disk says of every preview: result/* in TensorBoard."""

    clip_path: str | None = option(
        None,
        "Folder of a CLIP model as transformers saves it, which compares previews with their "
        "prompts and with images; null compares nothing.",
        affects_result=False,
    )
    compare_with: ImageSet = option(
        ImageSet.training, "Images that previews are compared with.", affects_result=False
    )
    num_images: int = option(
        32, "Most of these images, chosen by content.", low=1, affects_result=False
    )


@dataclass(kw_only=True)
class RunConfig:
    """One run, in full."""

    name: str = option(MISSING, "Name of the run; names its folder and its files.")
    run_id: str | None = option(
        None, "Folder below the name; null takes the time.", affects_result=False
    )
    seed: int = option(0, "Seed of everything random in training.", low=0)
    cpu_threads: int | None = option(
        None, "Threads torch computes with on the CPU; null leaves the choice to torch.", low=1
    )
    fused_backward: bool = option(
        False, "Step each parameter inside the backward pass, so that no gradients pile up."
    )
    resume: str | None = option(
        None,
        "Continue a run: auto (newest unfinished), a checkpoint, or a run folder, which brings its "
        "settings along.",
        affects_result=False,
    )
    output_dir: str = option("outputs", "Folder of all runs.", affects_result=False)
    optimized_metric: str = option(
        "val/loss",
        "Metric that sweeps minimise; result/*, of which more is better, is handed to them "
        "negative.",
        affects_result=False,
    )
    check_only: bool = option(
        False, "Check everything, print the plan, stop.", affects_result=False
    )
    record: bool = option(
        False,
        "Write what every step is made from to recording/batches.safetensors, for `loralab "
        "replay`; `train.py --record` sets it.",
        affects_result=False,
    )
    demo_quality: int = option(
        0,
        "Drawings of each held-out subject of the demo that are judged at the end (quality/*, "
        "evaluation.png); 0 judges none.",
        low=0,
        affects_result=False,
    )
    model: ModelRecord = option(ModelRecord, "Base model.")
    data: DataRecord = option(DataRecord, "Training images.")
    adapter: AdapterRecord = option(AdapterRecord, "Adapter.")
    objective: ObjectiveRecord = option(ObjectiveRecord, "Training loss.")
    optimizer: dict[str, Any] = option(dict, "Recipe of the optimizer.")
    scheduler: SchedulerRecord = option(SchedulerRecord, "Learning-rate schedule.")
    ema: EmaRecord = option(EmaRecord, "Weight averaging.")
    validation: ValidationRecord = option(ValidationRecord, "Validation.")
    export: ExportRecord = option(ExportRecord, "Adapter files.")
    trainer: dict[str, Any] = option(dict, "Recipe of the Lightning Trainer.")
    logger: LoggerRecord = option(LoggerRecord, "Logging.")
    callbacks: dict[str, Any] = option(dict, "Recipes of callbacks, one a key.")
    preview: PreviewRecord = option(PreviewRecord, "Previews.")
    result_metrics: ResultMetricsRecord = option(ResultMetricsRecord, "Judgement of previews.")
    compat: CompatRecord = option(CompatRecord, "Behaviour of other trainers.")

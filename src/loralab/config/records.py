"""Every configuration field we own, with its meaning and its allowed range.

Neutral defaults (0, false, null) live here; chosen values live in `conf/`; `???` marks what only
the user knows. Checks across fields are in `rules.py`. Records are not frozen, because OmegaConf
would make them read-only and Hydra then refuses every override; treat them as values all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from loralab.config.choices import (
    AdapterKind,
    Compat,
    Family,
    FilePrecision,
    Layout,
    LoggerKind,
    PredictionType,
    Schedule,
    WeightDtype,
    Weighting,
)


def option(
    default: Any,
    help_text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    affects_result: bool = True,
) -> Any:
    """Make a dataclass field that carries its meaning.

    Args:
        default: Neutral default; a callable is used as a factory.
        help_text: One sentence with the unit.
        low: Smallest allowed value, inclusive.
        high: Largest allowed value, inclusive.
        affects_result: False when the field may change on resume without changing the result.
    """
    metadata = {"help": help_text, "low": low, "high": high, "affects_result": affects_result}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class ModelRecord:
    """The frozen base model."""

    family: Family = option(Family.sd1, "Model family.")
    path: str = option(MISSING, "Folder of the base model in diffusers layout.")
    prediction_type: PredictionType | None = option(
        None, "What the UNet predicts; null takes it from the model's scheduler file."
    )
    native_resolution: int = option(512, "Side of the square the base was made for, in px.", low=8)
    clip_skip: int = option(
        1, "Text-encoder layer, counted from the end: 1 is the last, 2 the one before.", low=1
    )
    weight_dtype: WeightDtype = option(WeightDtype.fp32, "Storage of the frozen weights.")
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: less memory, slower."
    )
    allow_demo: bool = option(
        False, "Allow own images on the demo base, which draws only small icons."
    )


@dataclass(kw_only=True)
class BucketRecord:
    """Aspect-ratio buckets: images keep their shape, every bucket has about the same area."""

    enabled: bool = option(True, "Sort images by aspect ratio; false crops all to the square.")
    step: int = option(64, "Sides of buckets are multiples of this, in px.", low=8)
    min_side: int = option(256, "Shortest side of a bucket, in px.", low=8)
    max_side: int = option(1024, "Longest side of a bucket, in px.", low=8)


@dataclass(kw_only=True)
class CaptionRecord:
    """What happens to a caption before the text encoder sees it."""

    prefix: str = option("", "Text put before every caption.")
    separator: str = option(",", "What stands between tags.")
    shuffle_tags: bool = option(False, "Shuffle the tags anew each time an image is seen.")
    keep_tags: int = option(0, "Leading tags that are never shuffled or dropped.", low=0)
    tag_dropout: float = option(0.0, "Probability of dropping each other tag.", low=0.0, high=1.0)
    caption_dropout: float = option(
        0.0, "Probability of training an image with an empty caption.", low=0.0, high=1.0
    )


@dataclass(kw_only=True)
class LatentCacheRecord:
    """Latents are encoded once and kept on disk; runs and sweeps share them."""

    enabled: bool = option(True, "Encode images once; false encodes them at every step.")
    directory: str = option(MISSING, "Folder of the cache.", affects_result=False)


@dataclass(kw_only=True)
class DataRecord:
    """The training images."""

    image_dir: str = option(MISSING, "Folder of images, each with a caption file beside it.")
    caption_extension: str = option(".txt", "Ending of caption files.")
    repeats: int = option(1, "How often an epoch shows each image.", low=1)
    resolution: int = option(512, "Training area as the side of a square, in px.", low=8)
    batch_size: int = option(1, "Images in one forward pass, per device.", low=1)
    num_workers: int = option(
        0, "Processes that load images; 0 loads in the main one.", low=0, affects_result=False
    )
    flip_probability: float = option(
        0.0, "Probability of mirroring an image left to right.", low=0.0, high=1.0
    )
    buckets: BucketRecord = option(BucketRecord, "Aspect-ratio buckets.")
    captions: CaptionRecord = option(CaptionRecord, "Caption handling.")
    latent_cache: LatentCacheRecord = option(LatentCacheRecord, "Latent cache.")


@dataclass(kw_only=True)
class AdaptedPartRecord:
    """Which layers of one part get an adapter, and at what learning rate."""

    enabled: bool = option(False, "Attach adapters to this part.")
    targets: list[str] = option(
        list, "Presets (attention, attention_mlp, sd_scripts, full), module names or patterns."
    )
    lr: float | None = option(None, "Learning rate of this part; null uses lr_scale.", low=0.0)
    lr_scale: float = option(1.0, "Learning rate as a multiple of optimizer.lr.", low=0.0)


@dataclass(kw_only=True)
class AdapterRecord:
    """The adapter: small matrices beside the frozen layers."""

    kind: AdapterKind = option(AdapterKind.lora, "Kind of adapter.")
    rank: int = option(4, "Rank of the two matrices of a layer.", low=1)
    alpha: float = option(4.0, "The adapter's output is scaled by alpha / rank.", low=1e-6)
    dropout: float = option(0.0, "Dropout on the adapter's input.", low=0.0, high=0.999)
    unet: AdaptedPartRecord = option(AdaptedPartRecord, "The UNet's adapter.")
    text_encoder: AdaptedPartRecord = option(AdaptedPartRecord, "The text encoder's adapter.")


@dataclass(kw_only=True)
class ObjectiveRecord:
    """The training loss."""

    weighting: Weighting = option(Weighting.constant, "Loss weight by signal-to-noise ratio.")
    min_snr_gamma: float = option(5.0, "Gamma of min-SNR weighting.", low=1e-3)
    min_timestep: int = option(0, "Smallest timestep trained on.", low=0, high=999)
    max_timestep: int = option(1000, "Timesteps trained on are below this.", low=1, high=1000)


@dataclass(kw_only=True)
class SchedulerRecord:
    """The learning-rate schedule, in optimizer steps."""

    kind: Schedule = option(Schedule.constant, "Shape of the curve.")
    warmup_steps: int = option(0, "Steps of linear warm-up from 0.", low=0)
    warmup_fraction: float = option(
        0.0, "Warm-up as a fraction of all steps; give this or warmup_steps.", low=0.0, high=1.0
    )


@dataclass(kw_only=True)
class EmaRecord:
    """Averaging of the adapter's weights."""

    enabled: bool = option(False, "Average the weights; not available yet.")


@dataclass(kw_only=True)
class CompatRecord:
    """Behaviour of other trainers."""

    kind: Compat = option(Compat.none, "Whose behaviour to follow where ours differs.")


@dataclass(kw_only=True)
class ValidationRecord:
    """Loss on held-out images at fixed noise and timesteps: comparable between runs."""

    fraction: float = option(
        0.0, "Share of the images held out, chosen by content.", low=0.0, high=0.9
    )
    folder: str | None = option(None, "Folder of held-out images, instead of a share.")
    seed: int = option(0, "Seed of the validation noise.", low=0)
    strata: int = option(4, "Timesteps each image is measured at, evenly spread.", low=1, high=100)
    every_n_steps: int | None = option(
        None, "Steps between validations; null validates at the end only.", low=1
    )


@dataclass(kw_only=True)
class ExportRecord:
    """Adapter files for other programs."""

    layouts: list[Layout] = option(list, "Key namings to write: kohya, diffusers.")
    precision: FilePrecision = option(
        FilePrecision.fp16, "Number format of the files.", affects_result=False
    )
    name_template: str = option(
        "{name}", "File name; {name} and {run_id} are filled in.", affects_result=False
    )
    every_n_steps: int | None = option(
        None, "Also export every so many steps.", low=1, affects_result=False
    )
    every_n_epochs: int | None = option(
        None, "Also export every so many epochs.", low=1, affects_result=False
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
    resume: str | None = option(
        None, "Continue a run: auto (newest unfinished) or a checkpoint.", affects_result=False
    )
    output_dir: str = option("outputs", "Folder of all runs.", affects_result=False)
    optimized_metric: str = option("val/loss", "Metric that sweeps minimise.", affects_result=False)
    check_only: bool = option(
        False, "Check everything, print the plan, stop.", affects_result=False
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
    compat: CompatRecord = option(CompatRecord, "Behaviour of other trainers.")

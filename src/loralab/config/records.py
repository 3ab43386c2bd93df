"""Every configuration field we own, with its meaning and its allowed range.

Neutral defaults (0, false, null) live here; chosen values live in `conf/`; `???` marks what only
the user knows. Checks across fields are in `rules.py`. Records are not frozen, because OmegaConf
would make them read-only and Hydra then refuses every override; treat them as values all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from loralab.config.choices import (
    AdapterKind,
    AugmentationKind,
    BucketMatch,
    CacheStorage,
    Compat,
    Container,
    DropoutPlace,
    FilePrecision,
    HuberSchedule,
    Layout,
    LoggerKind,
    Loss,
    Masks,
    MetadataAmount,
    NameCollision,
    NoiseRule,
    OnBadImage,
    Posterior,
    Preservation,
    Reduction,
    ResizeFilter,
    Schedule,
    SourceLayout,
    StepUnit,
    TagOrder,
    TimestepSampling,
    TimestepSpread,
    Weighting,
    WeightNorm,
    WeightRule,
)
from loralab.config.model_records import ModelRecord
from loralab.config.option import option
from loralab.config.source_records import ImageFilterRecord, PriorRecord, SourceRecord


@dataclass(kw_only=True)
class BucketRecord:
    """Aspect-ratio buckets: images keep their shape, every bucket has about the same area."""

    enabled: bool = option(True, "Sort images by aspect ratio; false crops all to the square.")
    step: int = option(64, "Sides of buckets are multiples of this, in px.", low=8)
    min_side: int = option(256, "Shortest side of a bucket, in px.", low=8)
    max_side: int = option(1024, "Longest side of a bucket, in px.", low=8)
    match: BucketMatch = option(
        BucketMatch.log_ratio,
        "How the nearest shape is found: log_ratio treats portrait and landscape alike, ratio is "
        "the rule of sd-scripts.",
    )
    no_upscale: bool = option(
        False, "Never enlarge: each image is cut to a bucket of its own; limits of sides are idle."
    )
    sizes: list[str] = option(
        list, "Buckets as WIDTHxHEIGHT in px, like [832x1216], in place of a computed list."
    )


@dataclass(kw_only=True)
class CaptionRecord:
    """What happens to a caption before the text encoder sees it."""

    prefix: str = option("", "Text put before every caption.")
    suffix: str = option("", "Text put after every caption.")
    multi_line: bool = option(
        False, "Choose a line of the caption file anew each time; false takes the first."
    )
    wildcards: bool = option(False, "Replace {a|b} in captions by one of its parts each time.")
    separator: str = option(",", "What stands between tags.")
    secondary_separator: str = option(
        "", "What stands between tags that are shuffled and dropped as one; empty is off."
    )
    shuffle_tags: bool = option(False, "Shuffle the tags anew each time an image is seen.")
    keep_tags: int = option(0, "Leading tags that are never shuffled or dropped.", low=0)
    keep_tags_separator: str = option(
        "", "Mark after the tags to keep, and before those to keep at the end; empty is off."
    )
    tag_top_k: int | None = option(None, "Use the most frequent tags only, so many.", low=1)
    tag_min_count: int = option(1, "Use only tags that so many captions have.", low=1)
    tag_warmup_steps: int = option(
        0, "Steps over which the tags come in, the first ones first.", low=0
    )
    tag_warmup_min: int = option(1, "Tags at the first of these steps, beside those kept.", low=0)
    tag_dropout: float = option(0.0, "Probability of dropping each other tag.", low=0.0, high=1.0)
    caption_dropout: float = option(
        0.0, "Probability of training an image with an empty caption.", low=0.0, high=1.0
    )
    caption_dropout_every_n_epochs: int | None = option(
        None, "Train every so many epochs, whole, with empty captions.", low=1
    )
    tag_balance: float = option(
        0.0, "Loss weight by rarity of tags: 0 none, 1 the inverse of counts.", low=0.0, high=1.0
    )
    tag_balance_limit: float = option(4.0, "Largest of these weights; 1 / it the least.", low=1.0)
    tag_occurrence_file: bool = option(
        False, "Write how often tags occur to tags.txt in the run folder.", affects_result=False
    )
    tag_occurrence_order: TagOrder = option(
        TagOrder.count, "Order of that file.", affects_result=False
    )


@dataclass(kw_only=True)
class LatentCacheRecord:
    """Latents are encoded once and kept on disk; runs and sweeps share them."""

    enabled: bool = option(True, "Encode images once; false encodes them at every step.")
    directory: str = option(MISSING, "Folder of the cache.", affects_result=False)
    storage: CacheStorage = option(
        CacheStorage.disk,
        "Keep latents on disk, or in memory for this run alone.",
        affects_result=False,
    )
    precision: FilePrecision = option(
        FilePrecision.fp32, "Number format of cached latents; half precision halves their size."
    )
    posterior: Posterior = option(
        Posterior.resample,
        "Draw latents from the VAE's posterior at each visit, or once for each image.",
    )
    variants: int = option(
        1, "Random crops and colors of each image that are kept; each visit takes one.", low=1
    )
    size_limit: float | None = option(
        None, "Largest size of the cache, in GB; null sets none.", low=0.0, affects_result=False
    )


@dataclass(kw_only=True)
class DataRecord:
    """The training images."""

    image_dir: str | None = option(MISSING, "Folder of images; the short form of one source.")
    layout: SourceLayout = option(
        SourceLayout.folder,
        "How a folder lists its images: all files in it; folders named like 10_dog by repeats and "
        "class text, as sd-scripts reads them; or a metadata file.",
    )
    metadata_file: str | None = option(
        None,
        "Metadata file of that layout, in the folder: .jsonl, .csv, .parquet, or the .json of "
        "sd-scripts; null looks for one called metadata.",
    )
    caption_column: str = option("text", "Column of the captions in metadata files.")
    caption_extension: str = option(".txt", "Ending of caption files.")
    class_text: str | None = option(
        None, "Caption of images without a caption file; null demands a file for each."
    )
    repeats: int = option(1, "How often an epoch shows each image.", low=1)
    sources: list[SourceRecord] = option(
        list, "Several folders of images, each with options of its own, in place of image_dir."
    )
    on_bad_image: OnBadImage = option(
        OnBadImage.stop, "What becomes of unusable images: the run is refused, or goes on without."
    )
    shuffle_data: bool = option(True, "Show images in another order in each epoch.")
    resolution: int = option(512, "Training area as the side of a square, in px.", low=8)
    batch_size: int = option(1, "Images in one forward pass, per device.", low=1)
    num_workers: int = option(
        0, "Processes that load images; 0 loads in the main one.", low=0, affects_result=False
    )
    persistent_workers: bool = option(
        True, "Keep these processes from epoch to epoch.", affects_result=False
    )
    prefetch_factor: int = option(
        2, "Micro-batches that each of them loads ahead.", low=1, affects_result=False
    )
    flip_probability: float = option(
        0.0, "Probability of mirroring an image left to right.", low=0.0, high=1.0
    )
    augmentations: list[AugmentationKind] = option(
        list,
        "Random changes at each visit: flip mirrors half of them, random_crop cuts anywhere, "
        "crop_jitter near the centre, color shifts hue or gamma of a third.",
    )
    background: str = option("white", "What transparency is laid over: white, black or #rrggbb.")
    resize_filter: ResizeFilter = option(
        ResizeFilter.lanczos, "How images are scaled; area takes means, as sd-scripts does."
    )
    masks: Masks = option(
        Masks.none,
        "Weights of image parts in the loss: the alpha channel, or grey NAME.mask.png files.",
    )
    mask_dir: str | None = option(None, "Folder of the mask files; null looks beside the images.")
    mask_floor: float = option(0.0, "Least weight, where a mask is black.", low=0.0, high=1.0)
    buckets: BucketRecord = option(BucketRecord, "Aspect-ratio buckets.")
    captions: CaptionRecord = option(CaptionRecord, "Caption handling.")
    latent_cache: LatentCacheRecord = option(LatentCacheRecord, "Latent cache.")
    prior: PriorRecord = option(PriorRecord, "Class images.")
    image_filter: ImageFilterRecord = option(ImageFilterRecord, "Limits of image sizes.")


@dataclass(kw_only=True)
class AdaptedPartRecord:
    """Which layers of one part get an adapter, and at what learning rate."""

    enabled: bool = option(False, "Attach adapters to this part.")
    targets: list[str] = option(
        list, "Presets (attention, attention_mlp, sd_scripts, full), module names or patterns."
    )
    lr: float | None = option(None, "Learning rate of this part; null uses lr_scale.", low=0.0)
    lr_scale: float = option(1.0, "Learning rate as a multiple of optimizer.lr.", low=0.0)
    rank: int | None = option(None, "Rank in this part; null is adapter.rank.", low=1)
    alpha: float | None = option(
        None, "Alpha in this part; null keeps the scale alpha / rank of adapter.", low=1e-6
    )
    lora_plus_ratio: float | None = option(
        None, "Of this part; null is adapter.lora_plus_ratio.", low=1e-3
    )
    freeze_after_steps: int | None = option(
        None, "Steps after which this part is trained no more; null never.", low=1
    )
    rank_by_pattern: list[str] = option(
        list, "Rank of the modules of a name or pattern, like [to_q:8]; the last match wins."
    )
    alpha_by_pattern: list[str] = option(
        list, "Alpha of the modules of a name or pattern; without one the scale stays."
    )
    lr_scale_by_pattern: list[str] = option(
        list, "Learning rate of the modules of a name or pattern, as a multiple of the part's."
    )


@dataclass(kw_only=True)
class BlockRecord:
    """The UNet block by block: 25 blocks of SD1 and SD2, 23 of SDXL, as sd-scripts counts them."""

    ranks: list[int] = option(list, "Rank of each block; 0 adapts nothing there. Empty is off.")
    alphas: list[float] = option(list, "Alpha of each block; empty keeps the scale.")
    conv_ranks: list[int] = option(list, "Rank of each block's convolutions beyond 1x1.")
    conv_alphas: list[float] = option(list, "Alpha of these convolutions.")
    down_lr_scales: list[str] = option(
        list, "Rate of each down block as a multiple of the UNet's, or one curve like sine+0.25."
    )
    mid_lr_scales: list[str] = option(list, "The same for the middle block or blocks.")
    up_lr_scales: list[str] = option(list, "The same for the up blocks.")
    lr_zero_threshold: float = option(
        0.0, "Blocks whose multiple is not above this get no adapter.", low=0.0
    )


@dataclass(kw_only=True)
class WeightNormRecord:
    """A limit on the size of each module's update, kept after every step."""

    type: WeightNorm = option(WeightNorm.none, "Norm of the update.")
    max: float = option(1.0, "Largest norm; larger updates are scaled down to it.", low=1e-6)


@dataclass(kw_only=True)
class AdapterRecord:
    """The adapter: small matrices beside the frozen layers."""

    kind: AdapterKind = option(AdapterKind.lora, "Kind of adapter.")
    rank: int = option(4, "Rank of a layer's matrices; size of a block of oft and boft.", low=1)
    alpha: float = option(
        4.0, "The adapter's output is scaled by alpha / rank; oft and boft have no scale.", low=1e-6
    )
    conv_rank: int | None = option(
        None, "Rank of convolutions beyond 1x1 among the targets; null is rank.", low=1
    )
    conv_alpha: float | None = option(
        None, "Alpha of these convolutions; null keeps the scale alpha / rank.", low=1e-6
    )
    rank_stabilized: bool = option(False, "Scale by alpha / sqrt(rank): rsLoRA.")
    dropout: float = option(
        0.0, "Dropout inside the adapter, at dropout_place.", low=0.0, high=0.999
    )
    dropout_place: DropoutPlace = option(
        DropoutPlace.input, "Before the first matrix, or between both as sd-scripts has it."
    )
    rank_dropout: float = option(
        0.0, "Probability of dropping a rank; an output row of other kinds.", low=0.0, high=0.999
    )
    module_dropout: float = option(
        0.0, "Probability of leaving out a layer's adapter.", low=0.0, high=0.999
    )
    decompose_both: bool = option(False, "Of kind lokr: split the first factor as well.")
    decompose_factor: int = option(
        -1, "Of kind lokr: size of the first factor; -1 is near the square root.", low=-1
    )
    constraint: float = option(0.0, "Of kind oft and boft: largest rotation; 0 is any.", low=0.0)
    lora_plus_ratio: float = option(
        1.0, "Learning rate of the second matrix as a multiple: LoRA+.", low=1e-3
    )
    init_from: str | None = option(
        None, "Adapter file to start from: kohya, LyCORIS, diffusers or PEFT."
    )
    rank_from_file: bool = option(False, "Take each layer's rank and alpha from init_from.")
    weight_norm: WeightNormRecord = option(WeightNormRecord, "Limit on updates.")
    blocks: BlockRecord = option(BlockRecord, "The UNet block by block.")
    unet: AdaptedPartRecord = option(AdaptedPartRecord, "The UNet's adapter.")
    text_encoder: AdaptedPartRecord = option(AdaptedPartRecord, "The text encoder's adapter.")


@dataclass(kw_only=True)
class ObjectiveRecord:
    """The training loss."""

    loss: Loss = option(Loss.l2, "Cost of a wrong prediction.")
    huber_c: float = option(0.1, "Threshold of loss huber and smooth_l1.", low=1e-4)
    huber_schedule: HuberSchedule = option(
        HuberSchedule.snr, "How that threshold changes with the timestep."
    )
    reduction: Reduction = option(
        Reduction.by_weight,
        "Divide losses by the weights of the step's images and the area of masks, or by counts "
        "of images in the micro-batch and of all cells.",
    )
    weighting: Weighting = option(Weighting.constant, "Loss weight by signal-to-noise ratio.")
    weight_rule: WeightRule = option(
        WeightRule.exact,
        "Weights of the schedule trained on, alike for every prediction type, or as sd-scripts.",
    )
    min_snr_gamma: float = option(5.0, "Gamma of weighting min_snr and soft_min_snr.", low=1e-3)
    p2_gamma: float = option(1.0, "Gamma of weighting p2.", low=0.0)
    v_like_scale: float = option(1.0, "Share of the velocity's loss in weighting v_like.", low=0.0)
    zero_terminal_snr: bool = option(
        False, "Rescale the noise schedule so that its last timestep is pure noise."
    )
    timestep_sampling: TimestepSampling = option(
        TimestepSampling.uniform, "How often which timesteps are drawn."
    )
    logit_normal_mean: float = option(0.0, "Of timestep_sampling logit_normal: above 0 is noisier.")
    logit_normal_std: float = option(1.0, "Of timestep_sampling logit_normal: width.", low=1e-3)
    timestep_spread: TimestepSpread = option(
        TimestepSpread.independent, "How evenly the timesteps of one step cover the range."
    )
    min_timestep: int = option(0, "Smallest timestep trained on.", low=0, high=999)
    max_timestep: int = option(1000, "Timesteps trained on are below this.", low=1, high=1000)
    noise_rule: NoiseRule = option(
        NoiseRule.per_sample, "Draw each image's noise by itself, or as sd-scripts."
    )
    noise_offset: float = option(0.0, "Strength of a shift of whole channels of noise.", low=0.0)
    noise_offset_random: bool = option(False, "Draw that strength from 0 to noise_offset.")
    noise_offset_adaptive: float = option(
        0.0, "Added to that strength, times the size of the channel's mean latent."
    )
    multires_iterations: int = option(0, "Coarser layers of noise, at most so many.", low=0)
    multires_discount: float = option(
        0.3, "Weight of a layer as a multiple of the one before.", low=0.0, high=1.0
    )
    input_perturbation: float = option(
        0.0, "Strength of noise on the model's input that is not in its target.", low=0.0
    )
    input_perturbation_random: bool = option(
        False, "Draw that strength from 0 to input_perturbation."
    )
    preservation: Preservation = option(
        Preservation.none, "What is kept of the base's own predictions; needs no class images."
    )
    preservation_weight: float = option(
        1.0, "Weight of the mean squared distance from the base's prediction.", low=1e-6
    )


@dataclass(kw_only=True)
class SchedulerRecord:
    """The learning-rate schedule, in optimizer steps."""

    kind: Schedule = option(Schedule.constant, "Shape of the curve.")
    warmup_steps: int = option(0, "Steps of linear warm-up.", low=0)
    warmup_fraction: float = option(
        0.0, "Warm-up as a fraction of all steps; give this or warmup_steps.", low=0.0, high=1.0
    )
    warmup_start_factor: float = option(
        0.0, "Rate of the first warm-up step as a multiple of the peak.", low=0.0, high=1.0
    )
    num_cycles: int | None = option(None, "Cycles of cosine_with_restarts.", low=1)
    power: float | None = option(None, "Power of polynomial; 1 is a straight line.", low=1e-3)
    end_factor: float | None = option(
        None, "Rate at the end, or least rate of plateau, as a multiple of the peak.",
        low=0.0, high=1.0,
    )  # fmt: skip
    timescale: int | None = option(
        None, "Steps of inverse_sqrt; after three times as many the rate is half the peak.", low=1
    )
    decay_fraction: float | None = option(
        None, "Share of the steps after warm-up in which warmup_stable_decay falls.",
        low=0.0, high=1.0,
    )  # fmt: skip
    start_factor: float | None = option(
        None, "Rate at which one_cycle starts, as a multiple of the peak.", low=0.0, high=1.0
    )
    rise_fraction: float | None = option(
        None, "Share of all steps in which one_cycle rises.", low=0.0, high=1.0
    )
    gamma: float | None = option(
        None, "Factor of one fall of step, multistep, exponential or plateau.", low=0.0, high=1.0
    )
    step_size: int | None = option(
        None, "Length after which step and exponential have fallen by gamma.", low=1
    )
    milestones: list[int] = option(list, "Where multistep falls, counted from the run's start.")
    unit: StepUnit | None = option(None, "What step_size and milestones count: steps or epochs.")
    patience: int | None = option(
        None, "Validations without improvement that plateau lets pass.", low=0
    )
    threshold: float | None = option(
        None, "Least relative improvement of val/loss that counts for plateau.", low=0.0, high=1.0
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
    files: list[str] = option(
        list, "Images held out, each by its path; those among the training images are taken out."
    )
    seed: int = option(0, "Seed of the validation noise.", low=0)
    strata: int = option(4, "Timesteps each image is measured at, evenly spread.", low=1, high=100)
    every_n_steps: int | None = option(
        None, "Steps between validations; null validates at the end only.", low=1
    )
    train_probe: bool = option(
        False, "Measure as many trained images too; the gap shows overfitting and raises an alarm."
    )
    patience: int | None = option(
        None, "Stop after so many validations without improvement; null never stops.", low=1
    )
    min_improvement: float = option(
        0.0, "Gain that counts as improvement, in standard errors of the paired gain.", low=0.0
    )
    keep_best: bool = option(
        False, "Keep the checkpoint with the lowest val/loss and export it beside the last.",
        affects_result=False,
    )  # fmt: skip


@dataclass(kw_only=True)
class ExportRecord:
    """Adapter files for other programs."""

    layouts: list[Layout] = option(list, "Key namings to write: kohya, diffusers.")
    precision: FilePrecision = option(
        FilePrecision.fp16, "Number format of the files.", affects_result=False
    )
    container: Container = option(
        Container.safetensors, "Container of the files.", affects_result=False
    )
    metadata: MetadataAmount = option(
        MetadataAmount.full, "How much the files tell about their training.", affects_result=False
    )
    comment: str = option("", "Text kept in the files' metadata.", affects_result=False)
    name_template: str = option(
        "{name}",
        "File name; {name}, {run_id}, {comment}, {kind} and {rank} are filled in.",
        affects_result=False,
    )
    on_name_collision: NameCollision = option(
        NameCollision.version,
        "When another run's file has the name: add -v2, stop, or replace it.",
        affects_result=False,
    )
    keep_last: int | None = option(
        None, "Files of steps, and of epochs, to keep; null keeps all.", low=1, affects_result=False
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
    compat: CompatRecord = option(CompatRecord, "Behaviour of other trainers.")

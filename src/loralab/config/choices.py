"""The words a configuration may use. Member names are the words users write."""

from __future__ import annotations

from enum import Enum


class Family(Enum):
    """Model families; each has a loader in `loralab.models.registry`."""

    sd1 = "sd1"
    sd2 = "sd2"
    sdxl = "sdxl"


class MicroConditioning(Enum):
    """What families that read sizes are told about each picture."""

    real = "real"
    fixed = "fixed"


class PredictionType(Enum):
    """What the UNet predicts, as diffusers spells it."""

    epsilon = "epsilon"
    v_prediction = "v_prediction"
    sample = "sample"
    flow_prediction = "flow_prediction"


class WeightDtype(Enum):
    """Storage of the frozen base weights."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class AdapterDtype(Enum):
    """Storage of the adapter's weights while they are trained."""

    fp32 = "fp32"
    bf16 = "bf16"


class AdapterKind(Enum):
    """Adapter kinds; the last four need the package LyCORIS."""

    lora = "lora"
    dora = "dora"
    loha = "loha"
    lokr = "lokr"
    tucker = "tucker"
    dylora = "dylora"
    oft = "oft"
    boft = "boft"


class DropoutPlace(Enum):
    """Where `adapter.dropout` acts."""

    input = "input"
    inner = "inner"


class WeightNorm(Enum):
    """Norm of a module's update that is kept below a limit."""

    none = "none"
    frobenius = "frobenius"
    spectral = "spectral"


class Loss(Enum):
    """Cost of a wrong prediction, element by element."""

    l2 = "l2"
    l1 = "l1"
    huber = "huber"
    smooth_l1 = "smooth_l1"
    log_cosh = "log_cosh"


class HuberSchedule(Enum):
    """Threshold of the Huber losses as a function of the timestep."""

    constant = "constant"
    exponential = "exponential"
    snr = "snr"


class Weighting(Enum):
    """Loss weight as a function of the signal-to-noise ratio."""

    constant = "constant"
    min_snr = "min_snr"
    soft_min_snr = "soft_min_snr"
    debiased = "debiased"
    p2 = "p2"
    scale_v_like_noise = "scale_v_like_noise"
    v_like = "v_like"


class WeightRule(Enum):
    """How the weights of timesteps follow from the schedule."""

    exact = "exact"
    sd_scripts = "sd_scripts"


class NoiseRule(Enum):
    """What the samples of a micro-batch share when noise is drawn."""

    per_sample = "per_sample"
    sd_scripts = "sd_scripts"


class NoiseScheduleSource(Enum):
    """Whose noise schedule is trained on: of the base's own files, or the one SD came with."""

    base = "base"
    stable_diffusion = "stable_diffusion"


class SchedulePrecision(Enum):
    """In what the noise schedule is multiplied up, before it is kept in float32."""

    double = "double"
    single = "single"


class Reduction(Enum):
    """What the sum of the losses is divided by."""

    by_weight = "by_weight"
    by_count = "by_count"


class TimestepSampling(Enum):
    """How often which timesteps are drawn."""

    uniform = "uniform"
    logit_normal = "logit_normal"
    cubic = "cubic"


class TimestepSpread(Enum):
    """How evenly the timesteps of one optimizer step cover the range."""

    independent = "independent"
    stratified = "stratified"
    antithetic = "antithetic"


class Preservation(Enum):
    """What is kept of the base's own predictions."""

    none = "none"
    output = "output"
    outside_mask = "outside_mask"


class ImageSet(Enum):
    """Images that drawn pictures are compared with."""

    training = "training"
    held_out = "held_out"


class AverageUse(Enum):
    """What may take the average of the weights instead of the live ones."""

    validation = "validation"
    preview = "preview"
    export = "export"


class Schedule(Enum):
    """Learning-rate schedules; all but one_cycle may have a warm-up."""

    constant = "constant"
    constant_with_warmup = "constant_with_warmup"
    linear = "linear"
    cosine = "cosine"
    cosine_with_restarts = "cosine_with_restarts"
    cosine_with_min_lr = "cosine_with_min_lr"
    polynomial = "polynomial"
    inverse_sqrt = "inverse_sqrt"
    warmup_stable_decay = "warmup_stable_decay"
    rex = "rex"
    one_cycle = "one_cycle"
    step = "step"
    multistep = "multistep"
    exponential = "exponential"
    plateau = "plateau"


class StepUnit(Enum):
    """What a schedule's own lengths count."""

    steps = "steps"
    epochs = "epochs"


class BucketMatch(Enum):
    """How an image finds the bucket of the nearest shape."""

    log_ratio = "log_ratio"
    ratio = "ratio"


class ResizeFilter(Enum):
    """How images are scaled."""

    lanczos = "lanczos"
    area = "area"


class AugmentationKind(Enum):
    """Random changes of an image."""

    flip = "flip"
    random_crop = "random_crop"
    crop_jitter = "crop_jitter"
    color = "color"


class Masks(Enum):
    """Where the weights of image parts in the loss come from."""

    none = "none"
    alpha = "alpha"
    file = "file"


class Posterior(Enum):
    """Which draw of the VAE's posterior is trained on."""

    resample = "resample"
    frozen = "frozen"


class CacheStorage(Enum):
    """Where cached latents are kept."""

    disk = "disk"
    memory = "memory"


class TagRule(Enum):
    """What happens to empty tags, marks and the space between tags."""

    clean = "clean"
    sd_scripts = "sd_scripts"


class TagOrder(Enum):
    """Order of the tags in a tag-occurrence file."""

    count = "count"
    name = "name"


class Layout(Enum):
    """Key naming of an exported adapter file."""

    kohya = "kohya"
    diffusers = "diffusers"


class FilePrecision(Enum):
    """Number format of an exported adapter file; sd-scripts' float, and 32 and 16, are known."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    float = "fp32"  # noqa: PIE796  the other name of the same

    @classmethod
    def _missing_(cls, value: object) -> FilePrecision | None:
        return {32: cls.fp32, 16: cls.fp16}.get(value) if isinstance(value, int) else None


class Container(Enum):
    """Container of an exported adapter file; all but safetensors hold no metadata."""

    safetensors = "safetensors"
    ckpt = "ckpt"
    pt = "pt"
    bin = "bin"


class MetadataAmount(Enum):
    """How much an exported adapter file tells about its training."""

    full = "full"
    minimal = "minimal"
    none = "none"


class NameCollision(Enum):
    """What happens when an exported file would have the name of one that is there."""

    version = "version"
    error = "error"
    overwrite = "overwrite"


class LoggerKind(Enum):
    """Where numbers and pictures go."""

    tensorboard = "tensorboard"
    csv = "csv"
    none = "none"


class Compat(Enum):
    """Sets of behaviour of other trainers."""

    none = "none"
    sd_scripts = "sd_scripts"


class SourceLayout(Enum):
    """How a folder lists its images."""

    folder = "folder"
    numbered_folders = "numbered_folders"
    metadata = "metadata"


class OnBadImage(Enum):
    """What becomes of images that cannot be used."""

    stop = "stop"
    skip = "skip"


class FilterAction(Enum):
    """What becomes of images beyond the limits of the filter."""

    error = "error"
    skip = "skip"
    warn = "warn"

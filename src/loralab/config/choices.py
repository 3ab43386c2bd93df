"""The words a configuration may use. Member names are the words users write."""

from __future__ import annotations

from enum import Enum


class Family(Enum):
    """Model families; each has a loader in `loralab.models.registry`."""

    sd1 = "sd1"


class PredictionType(Enum):
    """What the UNet predicts, as diffusers spells it."""

    epsilon = "epsilon"
    v_prediction = "v_prediction"


class WeightDtype(Enum):
    """Storage of the frozen base weights; adapter weights are always float32."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class AdapterKind(Enum):
    """Adapter kinds."""

    lora = "lora"


class Weighting(Enum):
    """Loss weight as a function of the signal-to-noise ratio."""

    constant = "constant"
    min_snr = "min_snr"


class Schedule(Enum):
    """Learning-rate schedules; each may have a warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Layout(Enum):
    """Key naming of an exported adapter file."""

    kohya = "kohya"
    diffusers = "diffusers"


class FilePrecision(Enum):
    """Number format of an exported adapter file."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class LoggerKind(Enum):
    """Where numbers and pictures go."""

    tensorboard = "tensorboard"
    csv = "csv"
    none = "none"


class Compat(Enum):
    """Sets of behaviour of other trainers."""

    none = "none"

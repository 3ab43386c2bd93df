"""Configuration of the frozen base model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from loralab.config.choices import Family, MicroConditioning, PredictionType, WeightDtype
from loralab.config.option import option


class Attention(Enum):
    """How attention is computed; each is tried at the start and refused where it cannot run."""

    sdpa = "sdpa"
    sdpa_flash = "sdpa_flash"
    sdpa_efficient = "sdpa_efficient"
    sdpa_math = "sdpa_math"
    eager = "eager"
    sliced = "sliced"
    xformers = "xformers"


class CaptionOverflow(Enum):
    """What happens to a caption with more tokens than the context has."""

    truncate = "truncate"
    chunk = "chunk"
    skip = "skip"
    error = "error"


@dataclass(kw_only=True)
class ModelRecord:
    """The frozen base model."""

    family: Family = option(Family.sd1, "Model family.")
    path: str = option(
        MISSING, "Base model: folder in diffusers layout, checkpoint file, or cached hub id."
    )
    config_path: str | None = option(
        None, "Folder of configs for a checkpoint file of unusual shape; null takes the family's."
    )
    vae_path: str | None = option(None, "Folder or file of a VAE in place of the base's own.")
    prediction_type: PredictionType | None = option(
        None, "What the UNet predicts; null takes it from the model's scheduler file."
    )
    native_resolution: int = option(512, "Side of the square the base was made for, in px.", low=8)
    clip_skip: int | None = option(
        None,
        "Text-encoder layer, counted from the end: 1 is the last, 2 the one before; null takes "
        "the one the family was made with.",
        low=1,
    )
    max_tokens: int = option(
        75, "Tokens of a caption that the UNet sees: 75, 150, 225 and so on.", low=1
    )
    caption_overflow: CaptionOverflow = option(
        CaptionOverflow.truncate,
        "Captions above max_tokens: cut their end, lengthen the context for all in chunks of 75, "
        "skip the image, or stop.",
    )
    prompt_weights: bool = option(
        False, "Read (word:1.3), (word) and [word] in captions as weights of the words."
    )
    micro_conditioning: MicroConditioning = option(
        MicroConditioning.real,
        "Sizes and crops told to families that read them: each picture's own, or the same always.",
    )
    attention: Attention = option(
        Attention.sdpa, "How attention is computed; the same result within rounding."
    )
    weight_dtype: WeightDtype = option(WeightDtype.fp32, "Storage of the frozen weights.")
    vae_dtype: WeightDtype = option(WeightDtype.fp32, "Storage of the VAE; many overflow in fp16.")
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: less memory, slower."
    )
    text_cache_mib: int = option(
        256,
        "Memory for what each frozen text encoder made of captions, in MiB; 0 is off.",
        low=0,
        affects_result=False,
    )
    allow_demo: bool = option(
        False, "Allow own images on the demo base, which draws only small icons."
    )

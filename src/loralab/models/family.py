"""What a model family is: facts read from configs, layout known beforehand, and the loaded bundle.

Nothing here imports torch, so that preflight can ask for facts and presets quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from loralab.models.codec import LatentCodec
    from loralab.models.conditioning import ClipConditioner
    from loralab.models.denoiser import Denoiser


@dataclass(frozen=True)
class TextLayout:
    """How a family reads one of its text encoders.

    Attributes:
        part: Name of the encoder and of its folder.
        tokenizer: Folder of its tokenizer.
        final_norm: Whether the chosen layer goes through the encoder's last norm.
        pooled: Whether the UNet also gets the projected state of the caption's end.
        open_clip: Whether it is one of OpenCLIP's, which have other names in checkpoint files and
            fill rows with ``!``.
    """

    part: str = "text_encoder"
    tokenizer: str = "tokenizer"
    final_norm: bool = True
    pooled: bool = False
    open_clip: bool = False


@dataclass(frozen=True)
class FamilySpec:
    """The layout that all models of a family share.

    Attributes:
        title: What people call it.
        native_resolution: Pixels; the usual training side of the family.
        text: Its text encoders; the UNet reads their states side by side.
        clip_skip: The layer they are read at when nothing else is asked for, from the end.
        reads_sizes: Whether the UNet is told the picture's size and its cut.
        targets: For every part, presets of module names to adapt (suffixes of the dotted path).
        export_prefix: For every part, what its keys start with in a kohya file.
        export_sgm_names: Whether a kohya file names the UNet's modules as SGM does, not diffusers.
    """

    name: str
    title: str
    native_resolution: int
    text: tuple[TextLayout, ...]
    clip_skip: int
    reads_sizes: bool
    targets: Mapping[str, Mapping[str, tuple[str, ...]]]
    export_prefix: Mapping[str, str]
    export_sgm_names: bool

    @property
    def text_parts(self) -> tuple[str, ...]:
        """Return the names of the text encoders."""
        return tuple(layout.part for layout in self.text)

    @property
    def weighted_parts(self) -> tuple[str, ...]:
        """Return the names of everything that has weights."""
        return ("unet", "vae", *self.text_parts)


@dataclass(frozen=True)
class TextFacts:
    """What the config of one text encoder says.

    Attributes:
        width: Features of a token's state.
        projection_width: Features of the pooled state.
        num_layers: Layers, the upper limit of ``clip_skip``.
        row_length: Tokens of one pass, start and end tokens included.
    """

    width: int
    projection_width: int
    num_layers: int
    row_length: int
    vocab_size: int


@dataclass(frozen=True)
class ModelFacts:
    """What the component configs of one model say; read without weights.

    Attributes:
        vae_factor: Pixels per latent cell, along one side.
        bucket_step: Pixels; sides that are multiples of it pass through the UNet without padding.
        text: Facts of every text encoder, in the family's order.
        native_resolution: Pixels; the side of the square pictures the UNet was made for.
        latent_scale: Factor that brings the VAE's latents to about unit variance.
        schedule_config: The scheduler's config, with ``prediction_type`` always set.
        says_prediction_type: False for a file that may predict one or the other.
    """

    family: str
    prediction_type: str
    latent_channels: int
    vae_factor: int
    bucket_step: int
    cross_attention_dim: int
    text: tuple[TextFacts, ...]
    native_resolution: int
    latent_scale: float
    schedule_config: Mapping[str, Any]
    says_prediction_type: bool = True

    @property
    def num_text_layers(self) -> int:
        """Return the layers that every text encoder has."""
        return min(text.num_layers for text in self.text)


@dataclass
class ModelFamily:
    """A loaded base model, ready to be adapted; the VAE loads when it is first asked for."""

    spec: FamilySpec
    facts: ModelFacts
    denoiser: Denoiser
    conditioner: ClipConditioner
    schedule_config: Mapping[str, Any]
    latent_scale: float
    load_codec: Callable[[], LatentCodec]

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Return the networks that can carry an adapter, by the names used in configs."""
        models = (encoder.model for encoder in self.conditioner.encoders)
        return {"unet": self.denoiser.unet, **dict(zip(self.spec.text_parts, models, strict=True))}

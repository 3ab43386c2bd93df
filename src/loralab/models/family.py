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
class ModelFacts:
    """What the component configs of one model folder say; read without weights.

    Attributes:
        vae_factor: Pixels per latent cell, along one side.
        bucket_step: Pixels; sides that are multiples of it pass through the UNet without padding.
        max_tokens: Length of a tokenized caption, start and end tokens included.
        num_text_layers: Layers of the text encoder, the upper limit of ``clip_skip``.
        native_resolution: Pixels; the side of the square pictures the UNet was made for.
        latent_scale: Factor that brings the VAE's latents to about unit variance.
        schedule_config: The scheduler's config, with ``prediction_type`` always set.
    """

    family: str
    prediction_type: str
    latent_channels: int
    vae_factor: int
    bucket_step: int
    cross_attention_dim: int
    max_tokens: int
    num_text_layers: int
    vocab_size: int
    native_resolution: int
    latent_scale: float
    schedule_config: Mapping[str, Any]


@dataclass(frozen=True)
class FamilySpec:
    """The layout that all models of a family share.

    Attributes:
        native_resolution: Pixels; the usual training side of the family.
        targets: For every part, presets of module names to adapt (suffixes of the dotted path).
        export_prefix: For every part, what its keys start with in a kohya file.
    """

    name: str
    native_resolution: int
    targets: Mapping[str, Mapping[str, tuple[str, ...]]]
    export_prefix: Mapping[str, str]


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
        return {"unet": self.denoiser.unet, "text_encoder": self.conditioner.encoder}

"""Stable Diffusion 1.x: which modules an adapter may take, and how a folder becomes a family.

The spec is plain data and must stay importable without torch; loading imports what it needs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from loralab.models.family import FamilySpec, ModelFacts, ModelFamily

if TYPE_CHECKING:
    from pathlib import Path

    import torch

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
PROJECTIONS = ("proj_in", "proj_out")
CONVOLUTIONS = (
    "conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv",
)  # fmt: skip
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
TEXT_ALL = (*TEXT_ATTENTION, "fc1", "fc2")

SPEC = FamilySpec(
    name="sd1",
    native_resolution=512,
    targets={
        "unet": {
            "attention": ATTENTION,
            "attention_mlp": (*ATTENTION, *FEED_FORWARD),
            "sd_scripts": (*ATTENTION, *FEED_FORWARD, *PROJECTIONS),
            "full": (*ATTENTION, *FEED_FORWARD, *PROJECTIONS, *CONVOLUTIONS),
        },
        "text_encoder": {
            "attention": TEXT_ATTENTION,
            "attention_mlp": TEXT_ALL,
            "sd_scripts": TEXT_ALL,
            "full": TEXT_ALL,
        },
    },
    export_prefix={"unet": "lora_unet", "text_encoder": "lora_te"},
)


def load(
    path: Path,
    facts: ModelFacts,
    *,
    weight_dtype: torch.dtype,
    device: str | torch.device,
    clip_skip: int,
    max_tokens: int,
    gradient_checkpointing: bool,
    attention: str,
) -> ModelFamily:
    """Return the loaded family, frozen and in eval mode; arguments were checked before."""
    from loralab.models import components
    from loralab.models.conditioning import ClipConditioner
    from loralab.models.denoiser import Denoiser

    tokenizer = components.load_tokenizer(path, vocab_size=facts.vocab_size)
    encoder = components.load_text_encoder(path, dtype=weight_dtype)
    unet = components.load_unet(path, dtype=weight_dtype)
    components.set_attention(attention, unet=unet, text_encoder=encoder)
    if gradient_checkpointing:
        components.enable_checkpointing(unet=unet, text_encoder=encoder)
    return ModelFamily(
        spec=SPEC,
        facts=facts,
        denoiser=Denoiser(unet).to(device),
        conditioner=ClipConditioner(
            tokenizer, encoder, clip_skip=clip_skip, max_tokens=max_tokens
        ).to(device),
        schedule_config=facts.schedule_config,
        latent_scale=facts.latent_scale,
        load_codec=partial(components.load_codec, path, device=device),
    )

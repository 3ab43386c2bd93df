"""Stable Diffusion XL: CLIP-L and OpenCLIP-bigG side by side, sizes as conditioning, 1024 px.

Both encoders are read at the layer before the last, without their final norm; the pooled state
comes from the second (Podell et al. 2023, https://arxiv.org/abs/2307.01952).
"""

from __future__ import annotations

from loralab.models.family import FamilySpec, TextLayout
from loralab.models.targets import TEXT_TARGETS, UNET_TARGETS

SPEC = FamilySpec(
    name="sdxl",
    title="Stable Diffusion XL",
    native_resolution=1024,
    text=(
        TextLayout(final_norm=False),
        TextLayout("text_encoder_2", "tokenizer_2", final_norm=False, pooled=True, open_clip=True),
    ),
    clip_skip=2,
    reads_sizes=True,
    targets={
        "unet": UNET_TARGETS,
        "text_encoder": TEXT_TARGETS,
        "text_encoder_2": TEXT_TARGETS,
    },
    export_prefix={
        "unet": "lora_unet",
        "text_encoder": "lora_te1",
        "text_encoder_2": "lora_te2",
    },
    export_sgm_names=True,
)

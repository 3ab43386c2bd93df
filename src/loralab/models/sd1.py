"""Stable Diffusion 1.x: one CLIP-L text encoder, 512 px."""

from __future__ import annotations

from loralab.models.family import FamilySpec, TextLayout
from loralab.models.targets import TEXT_TARGETS, UNET_TARGETS

SPEC = FamilySpec(
    name="sd1",
    title="Stable Diffusion 1.x",
    native_resolution=512,
    text=(TextLayout(),),
    clip_skip=1,
    reads_sizes=False,
    targets={"unet": UNET_TARGETS, "text_encoder": TEXT_TARGETS},
    export_prefix={"unet": "lora_unet", "text_encoder": "lora_te"},
    export_sgm_names=False,
)

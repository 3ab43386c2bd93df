"""Stable Diffusion 2.x: one OpenCLIP-H text encoder, 512 px (epsilon) or 768 px (v-prediction).

The encoder's config counts 23 of OpenCLIP-H's 24 layers, so its last is the one before the last
that the model was made with: ``clip_skip`` 1 is right, 2 goes one further.
"""

from __future__ import annotations

from loralab.models.family import FamilySpec, TextLayout
from loralab.models.targets import TEXT_TARGETS, UNET_TARGETS

SPEC = FamilySpec(
    name="sd2",
    title="Stable Diffusion 2.x",
    native_resolution=768,
    text=(TextLayout(open_clip=True),),
    clip_skip=1,
    reads_sizes=False,
    targets={"unet": UNET_TARGETS, "text_encoder": TEXT_TARGETS},
    export_prefix={"unet": "lora_unet", "text_encoder": "lora_te"},
    export_sgm_names=False,
)

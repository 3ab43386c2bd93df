"""Presets of layers to adapt, by the names diffusers and transformers give them in all families."""

from __future__ import annotations

from collections.abc import Mapping

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
PROJECTIONS = ("proj_in", "proj_out")
CONVOLUTIONS = (
    "conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv",
)  # fmt: skip
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
TEXT_ALL = (*TEXT_ATTENTION, "fc1", "fc2")

UNET_TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": ATTENTION,
    "attention_mlp": (*ATTENTION, *FEED_FORWARD),
    "sd_scripts": (*ATTENTION, *FEED_FORWARD, *PROJECTIONS),
    "full": (*ATTENTION, *FEED_FORWARD, *PROJECTIONS, *CONVOLUTIONS),
}
TEXT_TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": TEXT_ATTENTION,
    "attention_mlp": TEXT_ALL,
    "sd_scripts": TEXT_ALL,
    "full": TEXT_ALL,
}

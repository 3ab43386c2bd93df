"""Tiny real models with adapters on them, and the SD1 skeleton at its real size on meta."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from loralab.adapters.inject import inject
from tests.adapters.adapted import (
    CONVOLUTIONS,
    SD_SCRIPTS_TEXT_ENCODER,
    SD_SCRIPTS_UNET,
    TINY_VOCAB,
    lora,
    randomize,
)
from tests.tiny import tiny_text_encoder, tiny_unet


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny_unet().eval()


@pytest.fixture
def text_encoder() -> CLIPTextModel:
    torch.manual_seed(0)
    return tiny_text_encoder(TINY_VOCAB).eval()


@pytest.fixture
def trained(unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> dict[str, nn.Module]:
    """Both parts with a random adapter, alpha not the rank, linear and convolutional."""
    spec = lora(*SD_SCRIPTS_UNET, *CONVOLUTIONS)
    inject(unet, spec, part="unet")
    inject(text_encoder, lora(*SD_SCRIPTS_TEXT_ENCODER, rank=3, alpha=1.3), part="text_encoder")
    parts: dict[str, nn.Module] = {"unet": unet, "text_encoder": text_encoder}
    for module in parts.values():
        randomize(module)
    return parts


@pytest.fixture(scope="session")
def sd1_skeleton() -> Callable[[str], nn.Module]:
    """Build a part of SD1 at its real size on the meta device."""

    def build(part: str) -> nn.Module:
        with torch.device("meta"):
            if part == "unet":
                return UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
            return CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=49408,
                    hidden_size=768,
                    intermediate_size=3072,
                    num_hidden_layers=12,
                    num_attention_heads=12,
                )
            )

    return build

"""Specs, random weights and forward passes that the adapter tests share."""

from __future__ import annotations

import torch
from torch import nn

from loralab.adapters.layers import adapter_layers, adapter_parameters
from loralab.adapters.spec import AdapterSpec
from tests.tiny import WIDTH

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv2", "time_emb_proj", "conv_shortcut", "downsamplers.0.conv")
SD_SCRIPTS_UNET = ATTENTION + FEED_FORWARD
SD_SCRIPTS_TEXT_ENCODER = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
TINY_VOCAB = 600


def lora(*targets: str, rank: int = 4, alpha: float = 7.0, dropout: float = 0.0) -> AdapterSpec:
    return AdapterSpec("lora", rank, alpha, dropout, targets)


def randomize(module: nn.Module, *, seed: int = 1, std: float = 0.05) -> None:
    """Give every adapter parameter a value that is not the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapter_layers(module).values():
            for _, parameter in adapter_parameters(layer):
                parameter.normal_(std=std, generator=generator)


def run_unet(unet: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 5, WIDTH, generator=generator)
    with torch.no_grad():
        result: torch.Tensor = unet(noisy, torch.tensor([3, 700]), context).sample
    return result


def run_text_encoder(encoder: nn.Module) -> torch.Tensor:
    tokens = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        result: torch.Tensor = encoder(tokens).last_hidden_state
    return result

"""Dropouts of LoRA layers that PEFT does not have, placed as sd-scripts places them.

Draws come from torch's global generator, which the training step seeds by position.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from loralab.adapters.layers import ADAPTER_NAME
from loralab.adapters.spec import AdapterSpec


def add_dropouts(layer: LoraLayer, spec: AdapterSpec) -> None:
    """Drop elements and ranks of what enters the up factor, and whole outputs of it."""
    up = layer.lora_B[ADAPTER_NAME]
    assert isinstance(up, nn.Module)
    if spec.inner_dropout or spec.rank_dropout:

        def before(module: nn.Module, inputs: tuple[Any, ...]) -> Tensor | None:
            if not module.training:
                return None
            hidden = functional.dropout(inputs[0], spec.inner_dropout)
            return drop_ranks(hidden, spec.rank_dropout, is_conv=isinstance(module, nn.Conv2d))

        up.register_forward_pre_hook(before)
    if spec.module_dropout:

        def after(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            dropped = module.training and torch.rand(()) < spec.module_dropout
            return output * 0.0 if dropped else None  # gradients are zero, not missing

        up.register_forward_hook(after)


def drop_ranks(hidden: Tensor, probability: float, *, is_conv: bool) -> Tensor:
    """Drop ranks, sample by sample, and divide by the share that is kept on average.

    Args:
        hidden: (B, rank, h, w) of a convolution, (B, ..., rank) of a linear layer.
    """
    if not probability:
        return hidden
    rank = hidden.shape[1] if is_conv else hidden.shape[-1]
    kept = torch.rand(hidden.shape[0], rank, device=hidden.device) > probability
    shape = (*kept.shape, 1, 1) if is_conv else (len(kept), *[1] * (hidden.dim() - 2), rank)
    return hidden * kept.reshape(shape).to(hidden.dtype) / (1 - probability)

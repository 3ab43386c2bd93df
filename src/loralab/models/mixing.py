"""Whether stored weights and autocast go together on a device: one call of small layers tells."""

from __future__ import annotations

import torch
from torch import nn

from loralab.errors import Problem

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def mixing_problem(
    dtype: torch.dtype, autocast: torch.dtype, *, precision: str, device: torch.device
) -> Problem | None:
    """Return why layers stored in a dtype cannot run under autocast, or None after they did.

    Args:
        dtype: Of the frozen weights.
        autocast: What autocast computes in.
        precision: The value of `trainer.precision` that asks for it.
        device: Where the training is.
    """
    try:
        linear = nn.Linear(8, 8, device=device, dtype=dtype)
        norm = nn.LayerNorm(8, device=device, dtype=dtype)
        stored = torch.ones(2, 8, device=device, dtype=dtype)
        with torch.autocast(device.type, dtype=autocast):
            torch.cat([norm(linear(stored)), stored])
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        text = (
            f"model.weight_dtype is {NAMES[dtype]}, which cannot be mixed with trainer.precision="
            f"{precision} on {device.type} ({reason}); set model.weight_dtype to "
            f"{NAMES[autocast]} or fp32, or trainer.precision=32-true."
        )
        return Problem("model.weight_dtype", text)
    return None

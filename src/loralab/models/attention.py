"""How attention is computed: a table of backends, each proved by a real call before training.

`unet.set_attention_backend` of diffusers 0.42 changes nothing on this UNet, so the processors are
set themselves; one of torch's kernels is chosen around each layer's call, so that the recomputation
of gradient checkpointing takes the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from loralab.errors import ModelError, Problem

KERNELS = {
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa_math": SDPBackend.MATH,
}
PROBE_SHAPE = (1, 2, 64, 64)  # heads and features a head as in the real thing, few tokens


def set_attention(
    kind: str, *, unet: Any, text_encoders: Sequence[Any], dtype: torch.dtype, device: Any
) -> None:
    """Choose the attention of all parts.

    A text encoder reads 77 tokens: it is plain where the UNet is (`eager`), and torch's else.

    Raises:
        ModelError: When the backend cannot run here.
    """
    if problem := attention_problem(kind, dtype=dtype, device=device):
        raise ModelError(problem)
    unet.set_attn_processor(_processor(kind))
    for encoder in text_encoders:
        encoder.set_attn_implementation("eager" if kind == "eager" else "sdpa")


class OneKernel(AttnProcessor2_0):
    """torch's attention with one of its kernels alone."""

    def __init__(self, backend: SDPBackend) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.backend = backend

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        with sdpa_kernel([self.backend]):
            states: Tensor = super().__call__(*args, **kwargs)
        return states


def _processor(kind: str) -> Any:
    if kind in KERNELS:
        return OneKernel(KERNELS[kind])
    if kind == "sliced":
        return SlicedAttnProcessor(slice_size=1)
    return {"eager": AttnProcessor, "xformers": XFormersAttnProcessor}.get(kind, AttnProcessor2_0)()


def attention_problem(kind: str, *, dtype: torch.dtype, device: Any) -> Problem | None:
    """Return why a backend cannot run on a device, or None after a call that worked."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            query = torch.ones(PROBE_SHAPE, device=device, dtype=dtype, requires_grad=True)
            _probe(kind, query).sum().backward()  # type: ignore[no-untyped-call]
    except (RuntimeError, ImportError, NotImplementedError, AssertionError, ValueError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        where = f"{torch.device(device).type} in {str(dtype).removeprefix('torch.')}"
        text = f"model.attention is {kind}, which cannot run on {where} ({reason}); use sdpa."
        return Problem("model.attention", text)
    return None


def _probe(kind: str, query: Tensor) -> Tensor:
    """Run the backend once; what it cannot do, it says by an exception."""
    if kind == "xformers":
        if query.device.type != "cuda":
            raise RuntimeError("it needs a CUDA device")
        import xformers.ops

        states: Tensor = xformers.ops.memory_efficient_attention(query, query, query)
        return states
    if kind.startswith("sdpa"):
        with sdpa_kernel([KERNELS[kind]]) if kind in KERNELS else nullcontext():
            return nn.functional.scaled_dot_product_attention(query, query, query)
    return torch.softmax(query @ query.mT, dim=-1) @ query

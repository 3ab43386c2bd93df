"""Adapters without a model: merged with one another, resized, extracted from two weights.

Everything works on one module at a time, so that a whole file is never needed at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loralab.adapters.weights import DORA, DOWN, UP, ModuleWeights
from loralab.errors import AdapterError, Problem


def concatenate(weights: Sequence[ModuleWeights], scales: Sequence[float]) -> ModuleWeights:
    """Return one LoRA whose update is exactly the weighted sum of these; ranks add up.

    Raises:
        AdapterError: One is no plain LoRA, or the shapes differ.
    """
    if not all(w.is_plain for w in weights):
        text = "only plain LoRA can be merged exactly; give a rank to merge by SVD"
        raise AdapterError(Problem("rank", text))
    if len({(w.up.shape[0], w.down.shape[1:]) for w in weights}) > 1:
        shapes = ", ".join(str((w.up.shape[0], *w.down.shape[1:])) for w in weights)
        raise AdapterError(Problem("shape", f"updates of shapes {shapes} cannot be added"))
    ups = [w.up.float() * (w.scale * scale) for w, scale in zip(weights, scales, strict=True)]
    up = torch.cat(ups, dim=1)
    down = torch.cat([w.down.float() for w in weights])
    return ModuleWeights({DOWN: down, UP: up}, float(down.shape[0]))


def sum_of(weights: Sequence[ModuleWeights], scales: Sequence[float]) -> Tensor:
    """Return the weighted sum of updates that need no base, float32.

    Raises:
        AdapterError: One of them needs the base, or the shapes differ.
    """
    deltas = [scale * w.delta() for w, scale in zip(weights, scales, strict=True)]
    if len({delta.shape for delta in deltas}) > 1:
        shapes = ", ".join(str(tuple(delta.shape)) for delta in deltas)
        raise AdapterError(Problem("shape", f"updates of shapes {shapes} cannot be added"))
    return torch.stack(deltas).sum(0)


def factorize(
    delta: Tensor, *, rank: int | None = None, energy: float | None = None
) -> tuple[ModuleWeights, float]:
    """Return the nearest LoRA to an update (Eckart-Young), and the share of energy it keeps.

    Args:
        delta: (out, in) or (out, in, kh, kw).
        rank: Largest rank; None is as high as it takes.
        energy: Share of the squared singular values to keep, 0 to 1; None keeps all.
    """
    matrix = delta.flatten(1).float()
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return _cut(left, values, right, delta.shape[1:], rank, energy)


def resize(
    weights: ModuleWeights, *, rank: int | None = None, energy: float | None = None
) -> tuple[ModuleWeights, float]:
    """Return a LoRA of another rank, and the share of energy that is kept.

    A plain LoRA's update is not formed: its singular values are those of a core of rank x rank.

    Raises:
        AdapterError: DoRA and OFT have no such form.
    """
    if DORA in weights.tensors:
        text = "DoRA cannot be resized without its base; merge it into the base and extract"
        raise AdapterError(Problem("kind", text))
    if not weights.is_plain:
        return factorize(weights.delta(), rank=rank, energy=energy)
    up, down = weights.factors(torch.float32)
    left, left_core = torch.linalg.qr(up)
    right, right_core = torch.linalg.qr(down.mT)
    inner_left, values, inner_right = torch.linalg.svd(left_core @ right_core.mT)
    return _cut(
        left @ inner_left, values, inner_right @ right.mT, weights.down.shape[1:], rank, energy
    )


def _cut(
    left: Tensor,
    values: Tensor,
    right: Tensor,
    tail: torch.Size,
    rank: int | None,
    energy: float | None,
) -> tuple[ModuleWeights, float]:
    squares = values.double().square()
    total = float(squares.sum())
    shares = squares.cumsum(0) / total if total else torch.ones_like(squares)
    size = len(values)
    if energy is not None:
        size = int((shares < energy - 1e-12).sum()) + 1
    size = max(1, min(size, rank or size, len(values)))
    root = values[:size].sqrt()
    up = (left[:, :size] * root).reshape(-1, size, *[1] * (len(tail) - 1))
    down = (root[:, None] * right[:size]).reshape(size, *tail)
    kept = ModuleWeights({DOWN: down.contiguous(), UP: up.contiguous()}, float(size))
    return kept, float(shares[size - 1])

"""Adapters without a model: merged with one another, resized, extracted from two weights.

Everything works on one module at a time, so that a whole file is never needed at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

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
    return _lora(*_side_by_side(weights, scales), weights[0].fan_in)


def merge_to_rank(
    weights: Sequence[ModuleWeights], scales: Sequence[float], rank: int
) -> ModuleWeights:
    """Return the LoRA of at most this rank nearest to the weighted sum of these updates.

    Raises:
        AdapterError: One of them needs the base, or the shapes differ.
    """
    if not all(w.is_product for w in weights):
        return factorize(_sum_of(weights, scales), rank=rank)[0]
    up, down = _side_by_side(weights, scales)
    return _product(up, down, weights[0].fan_in, rank, None)[0]


def _side_by_side(
    weights: Sequence[ModuleWeights], scales: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return factors of the weighted sum: (out, sum of ranks), (sum of ranks, in * kh * kw)."""
    pairs = [w.factors(torch.float32) for w in weights]
    # By size alone: SD2's proj_in is a linear layer in one file, a 1x1 convolution in another.
    if len({(len(up), down.shape[1]) for up, down in pairs}) > 1:
        raise _different((w.up.shape[0], *w.fan_in) for w in weights)
    up = torch.cat([up * scale for (up, _), scale in zip(pairs, scales, strict=True)], dim=1)
    return up, torch.cat([down for _, down in pairs])


def _sum_of(weights: Sequence[ModuleWeights], scales: Sequence[float]) -> Tensor:
    """Return the weighted sum of updates that need no base, float32."""
    total = weights[0].delta() * scales[0]
    for w, scale in zip(weights[1:], scales[1:], strict=True):
        delta = w.delta()
        if total.numel() != delta.numel() or len(total) != len(delta):
            raise _different([tuple(total.shape), tuple(delta.shape)])
        total.add_(delta.reshape(total.shape), alpha=scale)
    return total


def _different(shapes: Iterable[tuple[int, ...]]) -> AdapterError:
    text = f"updates of shapes {', '.join(map(str, shapes))} cannot be added"
    return AdapterError(Problem("shape", text))


def factorize(
    delta: Tensor, *, rank: int | None = None, energy: float | None = None
) -> tuple[ModuleWeights, float]:
    """Return the nearest LoRA to an update (Eckart-Young), and the share of energy it keeps.

    The vectors of the shorter side come from the triangle of a QR; the other factor is the
    update projected on them, which makes their product the update's projection to the last bit
    and needs no matrix of the update's size beside its copy in the QR.

    Args:
        delta: (out, in) or (out, in, kh, kw).
        rank: Largest rank; None is as high as it takes.
        energy: Share of the squared singular values to keep, 0 to 1; None keeps all.

    Raises:
        AdapterError: The update is not finite.
    """
    matrix = delta.flatten(1).float()
    if not math.isfinite(float(matrix.norm())):
        raise AdapterError(Problem("delta", "the update holds a value that is not finite"))
    is_wide = matrix.shape[0] <= matrix.shape[1]
    _, triangle = torch.linalg.qr(matrix.mT if is_wide else matrix, mode="r")
    _, values, vectors = torch.linalg.svd(triangle)  # rows: the shorter side's
    size, kept = _size(values, rank, energy)
    vectors = vectors[:size]
    root = values[:size].sqrt()
    inverse = torch.where(root > 0, 1 / root, torch.zeros_like(root))
    if is_wide:
        up, down = vectors.mT * root, (vectors * inverse[:, None]) @ matrix
    else:
        up, down = matrix @ (vectors.mT * inverse), vectors * root[:, None]
    return _lora(up, down, delta.shape[1:]), kept


def resize(
    weights: ModuleWeights, *, rank: int | None = None, energy: float | None = None
) -> tuple[ModuleWeights, float]:
    """Return a LoRA of another rank, and the share of energy that is kept.

    A LoRA's update is not formed: its singular values are those of a core of rank x rank.

    Raises:
        AdapterError: DoRA and OFT have no such form.
    """
    if DORA in weights.tensors:
        text = "DoRA cannot be resized without its base; merge it into the base and extract"
        raise AdapterError(Problem("kind", text))
    if not weights.is_product:
        return factorize(weights.delta(), rank=rank, energy=energy)
    up, down = weights.factors(torch.float32)
    return _product(up, down, weights.fan_in, rank, energy)


def _product(
    up: Tensor, down: Tensor, fan_in: torch.Size, rank: int | None, energy: float | None
) -> tuple[ModuleWeights, float]:
    """Return the nearest LoRA to up @ down, from a core of rank x rank."""
    left, left_core = torch.linalg.qr(up)
    right, right_core = torch.linalg.qr(down.mT)
    inner_left, values, inner_right = torch.linalg.svd(
        left_core @ right_core.mT, full_matrices=False
    )
    size, kept = _size(values, rank, energy)
    root = values[:size].sqrt()
    new_up = left @ (inner_left[:, :size] * root)
    new_down = (root[:, None] * inner_right[:size]) @ right.mT
    return _lora(new_up, new_down, fan_in), kept


def _size(values: Tensor, rank: int | None, energy: float | None) -> tuple[int, float]:
    """Return how many singular values to keep, and their share of all squares."""
    squares = values.double().square()
    total = float(squares.sum())
    shares = squares.cumsum(0) / total if total else torch.ones_like(squares)
    size = len(values)
    if energy is not None:
        size = int((shares < energy - 1e-12).sum()) + 1
    size = max(1, min(size, rank or size, len(values)))
    return size, float(shares[size - 1])


def _lora(up: Tensor, down: Tensor, fan_in: torch.Size) -> ModuleWeights:
    """Return (out, rank) and (rank, in * kh * kw) as a LoRA of scale 1."""
    size = len(down)
    tensors = {
        DOWN: down.reshape(size, *fan_in).contiguous(),
        UP: up.reshape(-1, size, *[1] * (len(fan_in) - 1)).contiguous(),
    }
    return ModuleWeights(tensors, float(size))

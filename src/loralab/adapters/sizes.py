"""How large an update is, from its factors: the update, often fifty times them, is not formed."""

from __future__ import annotations

import torch
from torch import Tensor

from loralab.adapters.weights import DORA, DOWN, UP, ModuleWeights, kronecker_factors

ROWS = 256  # of a LoHa's update at a time


def norms(weights: ModuleWeights) -> tuple[float | None, float | None]:
    """Return the Frobenius and the spectral norm of an update without DoRA's magnitudes.

    None is a norm that depends on the base (OFT, BOFT), or the spectral one of LoHa, whose
    update is no matrix product. Computed in float64.
    """
    if weights.algorithm in ("oft", "boft"):
        return None, None
    if weights.tensors.keys() >= {DOWN, UP}:
        return _both(core_singular_values(*weights.factors(torch.float64)))
    if weights.algorithm == "loha":
        return _loha_norm(weights), None
    if weights.algorithm == "lokr":
        return _lokr_norms(weights)
    return _both(torch.linalg.svdvals(weights.delta(dtype=torch.float64).flatten(1)))


def core_singular_values(up: Tensor, down: Tensor) -> Tensor:
    """Return the singular values of up @ down, largest first, from a core of rank x rank."""
    _, left = torch.linalg.qr(up, mode="r")
    _, right = torch.linalg.qr(down.mT, mode="r")
    values: Tensor = torch.linalg.svdvals(left @ right.mT)
    return values


def _both(values: Tensor) -> tuple[float, float]:
    return float(values.norm()), float(values[0])


def _loha_norm(weights: ModuleWeights) -> float:
    """Return the norm of an elementwise product, some rows at a time."""
    tensors = {name: t for name, t in weights.tensors.items() if name != DORA}
    side = 1 if "hada_t1" in tensors else 0  # where Tucker's factors have the rows
    square = 0.0
    for begin in range(0, tensors["hada_w1_a"].shape[side], ROWS):
        rows = (slice(None),) * side + (slice(begin, begin + ROWS),)
        cut = {name: t[rows] if name.endswith("_a") else t for name, t in tensors.items()}
        delta = ModuleWeights(cut, weights.alpha).delta(dtype=torch.float64)
        square += float(delta.square_().sum())
    return float(square**0.5)


def _lokr_norms(weights: ModuleWeights) -> tuple[float, float]:
    """Return both norms: of a Kronecker product they are the products of the factors' norms."""
    tensors = {name: t.detach().double() for name, t in weights.tensors.items() if name != DORA}
    one, two = (
        _both(torch.linalg.svdvals(factor.flatten(1))) for factor in kronecker_factors(tensors)
    )
    return one[0] * two[0] * weights.scale, one[1] * two[1] * weights.scale

"""The size of live updates: limits on it, and how many directions it has."""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from loralab.adapters.layers import adapter_parameters, layer_weights, live_delta
from loralab.adapters.sizes import core_singular_values
from loralab.adapters.state import product_square
from loralab.adapters.weights import DOWN, UP

NOT_A_FACTOR = "lora_magnitude_vector"


def limit_norm(layer: BaseTunerLayer, *, norm: str, largest: float) -> bool:
    """Scale a layer's factors so that the norm of their product is within the limit.

    All factors get the same share; DoRA's magnitudes are left alone.

    Args:
        layer: A layer whose update is a product of its parameters.
        norm: ``frobenius`` or ``spectral``.
        largest: The limit.

    Returns:
        Whether it was above the limit.
    """
    with torch.no_grad():
        size = float(product_norm(layer, norm=norm))
        if size <= largest:
            return False
        factors = [p for name, p in adapter_parameters(layer) if NOT_A_FACTOR not in name]
        share = _num_factors(layer)
        for factor in factors:
            factor.mul_((largest / size) ** (1 / share))
    return True


def product_norm(layer: BaseTunerLayer, *, norm: str) -> Tensor:
    """Return the norm of a layer's product of factors, () float32."""
    weights = layer_weights(layer)
    if weights.tensors.keys() >= {DOWN, UP}:
        up, down = weights.factors(torch.float32)
        if norm == "frobenius":
            return product_square(up, down).sqrt()
        return core_singular_values(up, down)[0]
    delta = live_delta(layer).flatten(1)
    size: Tensor = torch.linalg.matrix_norm(delta, ord="fro" if norm == "frobenius" else 2)
    return size


def effective_rank(layer: BaseTunerLayer) -> float | None:
    """Return exp(entropy) of the singular values' shares (Roy and Vetterli 2007), 0 for no update.

    None for kinds that are no product of two matrices.
    """
    weights = layer_weights(layer)
    if not weights.tensors.keys() >= {DOWN, UP}:
        return None
    values = core_singular_values(*weights.factors(torch.float32))
    if float(values.sum()) == 0:
        return 0.0
    shares = values / values.sum()
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def _num_factors(layer: BaseTunerLayer) -> int:
    """Return how many factors are multiplied; DyLoRA's ranks are rows of two of them."""
    names = {name for name, _ in adapter_parameters(layer) if NOT_A_FACTOR not in name}
    return 2 if any("up_list" in name for name in names) else len(names)

"""The adapter's own parameters: which are trained, their state, their size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from loralab.adapters.layers import (
    adapter_layers,
    adapter_parameters,
    layer_weights,
    live_delta,
)
from loralab.errors import AdapterError, Problem


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require a gradient: a list, so it can be walked twice."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def adapter_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the adapter's tensors by name, e.g. ``mid_block.attentions.0.proj_in.lora_A.weight``.

    They share memory with the live parameters, as in ``nn.Module.state_dict``.
    """
    return {name: parameter.detach() for name, parameter in _parameters(module).items()}


def load_adapter_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state into the live adapter; nothing is copied unless everything fits.

    Raises:
        AdapterError: Keys are missing, unexpected or of another shape; all of them are named.
    """
    if problems := state_problems(module, state):
        raise AdapterError(*problems)
    with torch.no_grad():
        for key, parameter in _parameters(module).items():
            parameter.copy_(state[key])


def state_problems(module: nn.Module, state: Mapping[str, Tensor]) -> list[Problem]:
    """Return a problem for every key that is missing, unexpected or of another shape."""
    live = _parameters(module)
    problems = [
        Problem(key, f"{key} is missing from the adapter's state.")
        for key in live
        if key not in state
    ]
    problems += [
        Problem(key, f"{key} is in the adapter's state, but the model has no such parameter.")
        for key in state
        if key not in live
    ]
    problems += [
        Problem(
            key,
            f"{key} has shape {tuple(state[key].shape)} in the adapter's state; "
            f"it must be {tuple(parameter.shape)}.",
        )
        for key, parameter in live.items()
        if key in state and state[key].shape != parameter.shape
    ]
    return problems


def adapter_norm(module: nn.Module) -> Tensor:
    """Return the Frobenius norm of the update over all adapted modules, () float32."""
    squares = [update_norm(layer).square() for layer in adapter_layers(module).values()]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())


def update_norm(layer: BaseTunerLayer) -> Tensor:
    """Return the Frobenius norm of one layer's update, () float32.

    A LoRA's update is not formed: ||BA||^2 = tr((B'B)(AA')), two matrices of rank x rank.
    """
    weights = layer_weights(layer)
    if weights.is_product:
        return product_square(*weights.factors(torch.float32)).sqrt()
    norm: Tensor = live_delta(layer).norm()
    return norm


def product_square(up: Tensor, down: Tensor) -> Tensor:
    """Return ||up @ down||^2 of (out, rank) and (rank, in), () and not below zero."""
    return ((up.mT @ up) * (down @ down.mT)).sum().clamp(min=0.0)


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {
        f"{path}.{name}": parameter
        for path, layer in adapter_layers(module).items()
        for name, parameter in adapter_parameters(layer)
    }

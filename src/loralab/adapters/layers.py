"""The modules an adapter can sit on, and what the live adapter of a module holds.

Nothing here changes a module; injection is in ``inject.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lokr import LoKrLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from loralab.adapters.weights import DORA, DOWN, UP, ModuleWeights

ADAPTER_NAME = "default"


def adaptable_modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield (dotted name, base layer) of every Linear and Conv2d, adapted already or not."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        base = child.get_base_layer() if isinstance(child, BaseTunerLayer) else child
        if is_adaptable(base):
            yield path, base
        else:
            yield from adaptable_modules(base, f"{path}.")


def is_adaptable(module: nn.Module) -> bool:
    """Grouped convolutions are left out: their factors have no agreed file layout."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1
    return isinstance(module, nn.Linear)


def adapter_layers(module: nn.Module) -> dict[str, BaseTunerLayer]:
    """Return every adapted layer by the dotted name of the layer it wraps, in module order."""
    return {
        name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)
    }


def adapter_parameters(layer: BaseTunerLayer) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name inside the layer without the adapter's own name, parameter)."""
    for holder_name in dict.fromkeys(layer.adapter_layer_names):  # DoRA adds its own twice
        holder = getattr(layer, holder_name)
        if ADAPTER_NAME not in holder:
            continue
        held = holder[ADAPTER_NAME]
        if isinstance(held, nn.Parameter):
            yield holder_name, held
        else:
            for name, parameter in held.named_parameters():
                yield f"{holder_name}.{name}", parameter


def base_weight(layer: BaseTunerLayer) -> Tensor:
    """Return the frozen weight under an adapter."""
    weight = layer.get_base_layer().weight
    assert isinstance(weight, Tensor)
    return weight


def live_weights(module: nn.Module) -> dict[str, ModuleWeights]:
    """Return what a file would hold of every adapted layer of a part, by module name.

    The tensors share memory with the live parameters where their shapes agree.
    """
    return {name: layer_weights(layer) for name, layer in adapter_layers(module).items()}


def layer_weights(layer: BaseTunerLayer) -> ModuleWeights:
    """Return what a file would hold of one adapted layer."""
    own = getattr(layer, "module_weights", None)  # LyCORIS' layers say it themselves
    if own is not None:
        weights = own()
        assert isinstance(weights, ModuleWeights)
        return weights
    if isinstance(layer, LoraLayer):
        return _lora_weights(layer)
    assert isinstance(layer, LycorisLayer)  # PEFT's name for its LoHa and LoKr
    scaling: dict[str, float] = layer.scaling
    tensors = {name: tensor.detach() for name, tensor in adapter_parameters(layer)}
    rank = int(layer.r[ADAPTER_NAME])
    if isinstance(layer, LoKrLayer) and {"lokr_w1", "lokr_w2"} <= tensors.keys():
        # LyCORIS has no scale where both factors are whole, so it is part of the first.
        tensors["lokr_w1"] = tensors["lokr_w1"] * scaling[ADAPTER_NAME]
        return ModuleWeights(tensors, float(rank))
    return ModuleWeights(tensors, _alpha(layer.alpha[ADAPTER_NAME], scaling[ADAPTER_NAME], rank))


def live_delta(layer: BaseTunerLayer) -> Tensor:
    """Return the update as the library itself forms it, in the base weight's shape, float32.

    A file is compared with this, so that our reading of its tensors is not its own witness.
    """
    own: Any = layer
    with torch.no_grad(), _float32(layer):
        delta: Tensor = own.get_delta_weight(ADAPTER_NAME).float()
        if not is_dora(layer):
            return delta
        weight = base_weight(layer).float()
        magnitude = own.lora_magnitude_vector[ADAPTER_NAME]
        norm = magnitude.get_weight_norm(weight, delta, scaling=1).detach()
        factor = (magnitude.weight / norm).reshape(-1, *[1] * (weight.dim() - 1))
        result: Tensor = factor * (weight + delta) - weight
        return result


@contextmanager
def _float32(layer: BaseTunerLayer) -> Iterator[None]:
    """Hold float32 copies of weights that are kept in less: products would be rounded to it."""
    kept = [(p, p.data) for _, p in adapter_parameters(layer) if p.dtype != torch.float32]
    try:
        for parameter, data in kept:
            parameter.data = data.float()
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def is_dora(layer: BaseTunerLayer) -> bool:
    return isinstance(layer, LoraLayer) and ADAPTER_NAME in layer.lora_magnitude_vector


def lora_factors(layer: BaseTunerLayer) -> tuple[Tensor, Tensor]:
    """Return a LoRA layer's live (down, up)."""
    assert isinstance(layer, LoraLayer)
    down, up = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
    assert isinstance(down, Tensor)
    assert isinstance(up, Tensor)
    return down, up


def _lora_weights(layer: LoraLayer) -> ModuleWeights:
    down, up = lora_factors(layer)
    tensors = {DOWN: down, UP: up}
    if is_dora(layer):
        magnitude = layer.lora_magnitude_vector[ADAPTER_NAME].weight
        assert isinstance(magnitude, Tensor)
        tensors[DORA] = magnitude.reshape(-1, *[1] * (base_weight(layer).dim() - 1))
    scale = float(layer.scaling[ADAPTER_NAME])
    return ModuleWeights(tensors, _alpha(layer.lora_alpha[ADAPTER_NAME], scale, int(down.shape[0])))


def _alpha(asked: float, scale: float, rank: int) -> float:
    """Return the alpha of a file.

    The scale is what the forward pass uses; alpha as asked is kept where the two agree, since
    (alpha / rank) * rank may be off by one unit in the last place.
    """
    return float(asked) if math.isclose(asked / rank, scale, rel_tol=1e-12) else scale * rank

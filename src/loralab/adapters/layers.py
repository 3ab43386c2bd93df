"""The modules an adapter can sit on, and what a LoRA layer holds.

Nothing here changes a module; injection is in ``inject.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

ADAPTER_NAME = "default"


@dataclass(frozen=True)
class LoraWeights:
    """One module's two factors: the update is ``alpha / rank * up @ down``.

    Attributes:
        down: (rank, in) for a linear layer, (rank, in, kh, kw) for a convolution.
        up: (out, rank) or (out, rank, 1, 1).
        alpha: The constant of the scale, never the scale itself.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return (out, rank) with the scale folded in, and (rank, in * kh * kw)."""
        up = self.up.detach().flatten(1).to(dtype) * (self.alpha / self.rank)
        return up, self.down.detach().flatten(1).to(dtype)

    def delta(self) -> Tensor:
        """Return the update of the base weight, in that weight's shape."""
        up, down = self.factors(torch.float32)
        return (up @ down).reshape(self.up.shape[0], *self.down.shape[1:])


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
    for holder_name in layer.adapter_layer_names:
        holder = getattr(layer, holder_name)
        if ADAPTER_NAME not in holder:
            continue
        held = holder[ADAPTER_NAME]
        if isinstance(held, nn.Parameter):
            yield holder_name, held
        else:
            for name, parameter in held.named_parameters():
                yield f"{holder_name}.{name}", parameter


def lora_weights(module: nn.Module) -> dict[str, LoraWeights]:
    """Return the live factors of every LoRA layer of a part, by module name."""
    return {name: _weights(layer) for name, layer in adapter_layers(module).items()}


def lora_factors(layer: BaseTunerLayer) -> tuple[Tensor, Tensor]:
    """Return a LoRA layer's live (down, up)."""
    assert isinstance(layer, LoraLayer)
    down, up = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
    assert isinstance(down, Tensor)
    assert isinstance(up, Tensor)
    return down, up


def _weights(layer: BaseTunerLayer) -> LoraWeights:
    assert isinstance(layer, LoraLayer)
    down, up = lora_factors(layer)
    rank, scale = int(down.shape[0]), float(layer.scaling[ADAPTER_NAME])
    alpha = float(layer.lora_alpha[ADAPTER_NAME])
    # The scale is what the forward pass uses; alpha as asked is kept where the two agree, since
    # (alpha / rank) * rank may be off by one unit in the last place.
    if not math.isclose(alpha / rank, scale, rel_tol=1e-12):
        alpha = scale * rank
    return LoraWeights(down, up, alpha)

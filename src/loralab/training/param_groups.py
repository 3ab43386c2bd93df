"""Parameter groups of the optimizer: one for each rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from loralab.adapters.layers import adapter_layers, adapter_parameters

SECOND_MATRIX = "lora_B"


@dataclass(frozen=True)
class RateRules:
    """What changes a part's learning rate inside the part.

    Attributes:
        lora_plus_ratio: Multiple for the second matrix (Hayou et al. 2024, LoRA+).
        lr_scales: Multiple by module; modules that are not named have 1.
    """

    lora_plus_ratio: float = 1.0
    lr_scales: Mapping[str, float] = field(default_factory=dict)


def parameter_groups(
    part: str, module: nn.Module, learning_rate: float, rules: RateRules
) -> list[dict[str, Any]]:
    """Return the groups of one part; together they hold every parameter.

    Groups are named ``unet``, and ``unet_up`` or ``unet_x0.5`` where the rate is another.
    """
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for path, layer in adapter_layers(module).items():
        for name, parameter in adapter_parameters(layer):
            is_up = rules.lora_plus_ratio != 1 and name.startswith(SECOND_MATRIX)
            key = (rules.lr_scales.get(path, 1.0), is_up)
            found.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * scale * (rules.lora_plus_ratio if is_up else 1.0),
            "name": part + ("" if scale == 1 else f"_x{scale:g}") + ("_up" if is_up else ""),
        }
        for (scale, is_up), parameters in sorted(found.items(), key=lambda item: item[0])
    ]

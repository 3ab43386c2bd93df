"""Parameter groups of the optimizer: one for each rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from loralab.adapters.layers import adapter_layers, adapter_parameters

SECOND_MATRIX = "lora_B"


@dataclass(frozen=True)
class RateRules:
    """What changes learning rate and weight decay inside a part.

    Attributes:
        lora_plus_ratio: Multiple for the second matrix (Hayou et al. 2024, LoRA+).
        lr_scales: Multiple by module; modules that are not named have 1.
        weight_decay: Of the part; None leaves it to the optimizer.
        decays_vectors: Parameters of one dimension are decayed as well.
    """

    lora_plus_ratio: float = 1.0
    lr_scales: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float | None = None
    decays_vectors: bool = True


def in_order(parts: Iterable[str]) -> list[str]:
    """Return names of parts as the optimizer has them: the UNet last, as in sd-scripts.

    The order in which squares are added decides the last digit of the norm that gradients are
    clipped by.
    """
    return sorted(parts, key=lambda name: name == "unet")


def parameter_groups(
    part: str, module: nn.Module, learning_rate: float, rules: RateRules
) -> list[dict[str, Any]]:
    """Return the groups of one part; together they hold every parameter."""
    layers = adapter_layers(module)
    named = {path: list(adapter_parameters(layer)) for path, layer in layers.items()}
    return group_parameters(part, named, learning_rate, rules)


def group_parameters(
    part: str,
    named: Mapping[str, Sequence[tuple[str, nn.Parameter]]],
    learning_rate: float,
    rules: RateRules,
) -> list[dict[str, Any]]:
    """Return the groups of named parameters of every module of a part.

    Groups are named ``unet``, and ``unet_up``, ``unet_x0.5`` or ``unet_no_decay`` where the rate
    or the decay is another.
    """
    found: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for path, parameters in named.items():
        for name, parameter in parameters:
            is_up = rules.lora_plus_ratio != 1 and name.startswith(SECOND_MATRIX)
            is_free = not rules.decays_vectors and parameter.dim() < 2
            key = (rules.lr_scales.get(path, 1.0), is_up, is_free)
            found.setdefault(key, []).append(parameter)
    return [
        {
            "params": members,
            "lr": learning_rate * scale * (rules.lora_plus_ratio if is_up else 1.0),
            "name": group_name(part, scale=scale, is_up=is_up, is_free=is_free),
            **_decay(0.0 if is_free else rules.weight_decay),
        }
        for (scale, is_up, is_free), members in sorted(found.items(), key=lambda item: item[0])
    ]


def group_name(part: str, *, scale: float, is_up: bool, is_free: bool) -> str:
    """Return the name of a group, which says how it differs from the rest of its part."""
    words = [part, "" if scale == 1 else f"x{scale:g}", is_up * "up", is_free * "no_decay"]
    return "_".join(word for word in words if word)


def _decay(value: float | None) -> dict[str, float]:
    return {} if value is None else {"weight_decay": value}

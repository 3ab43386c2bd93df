"""The table of adapter kinds: how PEFT is configured, how many parameters, how they start.

A new kind is one entry here, plus its tensors in ``layouts.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from loralab.adapters.layers import lora_factors
from loralab.adapters.spec import AdapterSpec
from loralab.errors import AdapterError, Problem


@dataclass(frozen=True)
class AdapterKind:
    """What has to be known about one kind of adapter.

    Attributes:
        make_config: (spec, regular expression of complete module names) -> PEFT's configuration.
        num_parameters: (base layer, spec) -> parameters the adapter adds to it.
        initialize: Sets an injected layer's float32 parameters to the identity, drawing on the
            CPU from torch's global generator.
    """

    make_config: Callable[[AdapterSpec, str], PeftConfig]
    num_parameters: Callable[[nn.Module, AdapterSpec], int]
    initialize: Callable[[BaseTunerLayer], None]


def kind_of(spec: AdapterSpec) -> AdapterKind:
    """Return the table's entry for a spec.

    Raises:
        AdapterError: The kind is not in the table.
    """
    if spec.kind not in KINDS:
        allowed = ", ".join(sorted(KINDS))
        text = f"adapter.kind is {spec.kind!r}; it must be one of {allowed}."
        raise AdapterError(Problem("adapter.kind", text))
    return KINDS[spec.kind]


def _lora_config(spec: AdapterSpec, pattern: str) -> PeftConfig:
    # Files hold alpha in float32: training with that very number makes them exact for 0.1 too.
    alpha = torch.tensor(float(spec.alpha), dtype=torch.float32).item()
    return LoraConfig(
        r=spec.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # a float works; only the hint says int
        lora_dropout=spec.dropout,
        target_modules=pattern,
        bias="none",
    )


def _lora_num_parameters(layer: nn.Module, spec: AdapterSpec) -> int:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return spec.rank * (math.prod(weight.shape[1:]) + weight.shape[0])


def _initialize_lora(layer: BaseTunerLayer) -> None:
    """Hu et al. 2021, section 4.1: B = 0, so the update starts at zero; A as PEFT draws it.

    PEFT's own draw is replaced because it is rounded to the base's dtype first.
    """
    down, up = lora_factors(layer)
    draw = torch.empty(down.shape, dtype=torch.float32)
    nn.init.kaiming_uniform_(draw, a=math.sqrt(5))
    with torch.no_grad():
        down.copy_(draw)
        up.zero_()


KINDS: Mapping[str, AdapterKind] = {
    "lora": AdapterKind(_lora_config, _lora_num_parameters, _initialize_lora),
}

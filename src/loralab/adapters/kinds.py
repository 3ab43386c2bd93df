"""The table of adapter kinds: how they are put on modules, how many parameters, how they start.

A new kind is one entry here, plus its update in ``weights.py``. PEFT carries the first four,
LyCORIS the others (``lycoris_kinds.py``).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.lokr.layer import factorization
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from loralab.adapters import lycoris_kinds
from loralab.adapters.layers import (
    ADAPTER_NAME,
    adapter_parameters,
    base_weight,
    is_dora,
    lora_factors,
)
from loralab.adapters.plan import LayerPlan
from loralab.adapters.spec import AdapterSpec
from loralab.errors import AdapterError, Problem

Plans = Mapping[str, LayerPlan]


@dataclass(frozen=True)
class AdapterKind:
    """What has to be known about one kind of adapter.

    Attributes:
        attach: (part, spec, plan of every module) -> None; puts the layers in place.
        num_parameters: (base layer, spec, rank) -> parameters the adapter adds to it.
        initialize: Sets an injected layer's float32 parameters to the identity, drawing on the
            CPU from torch's global generator.
        block_size: (base layer, spec, rank) -> side of its rotations; None of kinds without.
        in_diffusers: Whether the kind can be written in the diffusers / PEFT naming.
    """

    attach: Callable[[nn.Module, AdapterSpec, Plans], None]
    num_parameters: Callable[[nn.Module, AdapterSpec, int], int]
    initialize: Callable[[BaseTunerLayer], None]
    block_size: Callable[[nn.Module, AdapterSpec, int], int | None] = lambda *_: None
    in_diffusers: bool = True


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


def _attach_peft(
    make: Callable[..., PeftConfig],
) -> Callable[[nn.Module, AdapterSpec, Plans], None]:
    def attach(module: nn.Module, spec: AdapterSpec, plans: Plans) -> None:
        # Files hold alpha in float32: training with that very number makes them exact for 0.1 too.
        alphas = {
            name: float(torch.tensor(plan.alpha, dtype=torch.float32))
            for name, plan in plans.items()
        }
        ranks = {name: plan.rank for name, plan in plans.items()}
        rank, rank_pattern = _patterns(ranks)
        alpha, alpha_pattern = _patterns(alphas)
        config = make(
            spec,
            r=rank,
            alpha=alpha,
            rank_pattern=rank_pattern,
            alpha_pattern=alpha_pattern,
            target_modules=_exactly(plans),
        )
        # The libraries' models keep count of their adapters, so that pipelines can see ours.
        add = getattr(module, "add_adapter", None)
        if add is None:
            inject_adapter_in_model(config, module, ADAPTER_NAME)
        else:
            add(config, adapter_name=ADAPTER_NAME)

    return attach


def _patterns(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the most common value, and one pattern for the names of every other value."""
    common = Counter(values.values()).most_common(1)[0][0]
    others: dict[Any, list[str]] = {}
    for name, value in values.items():
        if value != common:
            others.setdefault(value, []).append(name)
    return common, {f"^(?:{_exactly(names)})": value for value, names in others.items()}


def _exactly(names: Any) -> str:
    """Return a pattern for these complete names: PEFT compares a list with the names' ends."""
    return "|".join(re.escape(name) for name in sorted(names))


def _lora_config(spec: AdapterSpec, *, alpha: float, **fields: Any) -> PeftConfig:
    return LoraConfig(
        **fields,
        lora_alpha=alpha,  # type: ignore[arg-type]  # a float works; only the hint says int
        lora_dropout=spec.dropout,
        use_dora=spec.kind == "dora",
        bias="none",
    )


def _loha_config(spec: AdapterSpec, **fields: Any) -> PeftConfig:
    return LoHaConfig(**fields, rank_dropout=spec.rank_dropout, module_dropout=spec.module_dropout)


def _lokr_config(spec: AdapterSpec, **fields: Any) -> PeftConfig:
    return LoKrConfig(
        **fields,
        rank_dropout=spec.rank_dropout,
        rank_dropout_scale=False,
        module_dropout=spec.module_dropout,
        decompose_both=bool(spec.options.get("decompose_both", False)),
        decompose_factor=int(spec.options.get("decompose_factor", -1)),
    )


def _shape(layer: nn.Module) -> tuple[int, int]:
    """Return (out, in * kh * kw)."""
    assert isinstance(layer.weight, Tensor)
    return int(layer.weight.shape[0]), math.prod(layer.weight.shape[1:])


def _lora_size(layer: nn.Module, spec: AdapterSpec, rank: int) -> int:
    magnitudes = _shape(layer)[0] if spec.kind == "dora" else 0
    return rank * sum(_shape(layer)) + magnitudes


def _loha_size(layer: nn.Module, spec: AdapterSpec, rank: int) -> int:
    return 2 * rank * sum(_shape(layer))


def _lokr_size(layer: nn.Module, spec: AdapterSpec, rank: int) -> int:
    """Follow PEFT 0.21: a factor is whole unless the rank is below half its larger side."""
    assert isinstance(layer.weight, Tensor)
    out_features, in_features, *kernel = layer.weight.shape
    factor = int(spec.options.get("decompose_factor", -1))
    in_one, in_two = factorization(in_features, factor)
    out_one, out_two = factorization(out_features, factor)
    area = math.prod(kernel)
    split_one = spec.options.get("decompose_both") and rank < max(out_one, in_one) / 2
    one = rank * (out_one + in_one) if split_one else out_one * in_one
    split_two = rank < max(out_two, in_two) / 2
    two = rank * (out_two + in_two * area) if split_two else out_two * in_two * area
    return int(one + two)


def _initialize_lora(layer: BaseTunerLayer) -> None:
    """Hu et al. 2021, section 4.1: B = 0, so the update starts at zero; A as PEFT draws it.

    PEFT's own draw is replaced because it is rounded to the base's dtype first.
    """
    down, up = lora_factors(layer)
    _draw(down)
    with torch.no_grad():
        up.zero_()
        if is_dora(layer):  # Liu et al. 2024, equation 5: the magnitude starts as the norm
            own: Any = layer
            magnitude = own.lora_magnitude_vector[ADAPTER_NAME]
            weight = base_weight(layer).float()
            norm = magnitude.get_weight_norm(weight, torch.zeros_like(weight), scaling=1)
            magnitude.weight.copy_(norm)


def _initialize_product(zero: tuple[str, ...]) -> Callable[[BaseTunerLayer], None]:
    """Draw all factors but the first of these that is there, which is zero."""

    def initialize(layer: BaseTunerLayer) -> None:
        parameters = dict(adapter_parameters(layer))
        start = next(name for name in zero if name in parameters)
        for name, parameter in parameters.items():
            if name == start:
                nn.init.zeros_(parameter)
            else:
                _draw(parameter)

    return initialize


def _draw(parameter: Tensor) -> None:
    draw = torch.empty(parameter.shape, dtype=torch.float32)
    nn.init.kaiming_uniform_(draw, a=math.sqrt(5))
    with torch.no_grad():
        parameter.copy_(draw)


def _keep(layer: BaseTunerLayer) -> None:
    """LyCORIS' layers are drawn where they are made."""


def _lycoris(name: str) -> AdapterKind:
    return AdapterKind(
        lambda module, spec, plans: lycoris_kinds.attach(module, name, spec, plans),
        lambda layer, spec, rank: lycoris_kinds.num_parameters(layer, name, spec, rank),
        _keep,
        lambda layer, spec, rank: lycoris_kinds.block_size(layer, name, spec, rank),
        in_diffusers=False,
    )


KINDS: Mapping[str, AdapterKind] = {
    "lora": AdapterKind(_attach_peft(_lora_config), _lora_size, _initialize_lora),
    "dora": AdapterKind(_attach_peft(_lora_config), _lora_size, _initialize_lora),
    "loha": AdapterKind(
        _attach_peft(_loha_config), _loha_size, _initialize_product(("hada_w2_b",))
    ),
    "lokr": AdapterKind(
        _attach_peft(_lokr_config), _lokr_size, _initialize_product(("lokr_w1", "lokr_w1_a"))
    ),
    "tucker": _lycoris("tucker"),
    "dylora": _lycoris("dylora"),
    "oft": _lycoris("oft"),
    "boft": _lycoris("boft"),
}

"""From a part and a spec to every module's rank, alpha and rate. Works on the meta device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from loralab.adapters.blocks import block_index
from loralab.adapters.layers import adaptable_modules
from loralab.adapters.spec import AdapterSpec
from loralab.adapters.targets import match_targets
from loralab.errors import AdapterError, Problem

_T = TypeVar("_T")


@dataclass(frozen=True)
class LayerPlan:
    """One module's adapter: the update is scaled by ``alpha / rank``.

    Attributes:
        lr_scale: Multiple of the part's learning rate.
    """

    rank: int
    alpha: float
    lr_scale: float = 1.0


def plan_layers(module: nn.Module, spec: AdapterSpec, *, part: str = "") -> dict[str, LayerPlan]:
    """Return the plan of every module that gets an adapter, in module order.

    Later rules win: part, convolution, block, pattern.

    Raises:
        AdapterError: A target or a pattern matches nothing, or nothing is left to adapt.
    """
    hits = match_targets(module, spec.targets, part=part)
    chosen = {name for found in hits.values() for name in found}
    base = f"adapter.{part}" if part else "adapter"
    overrides, problems = spec.overrides, list[Problem]()
    ranks = _by_module(module, overrides.rank, f"{base}.rank_by_pattern", chosen, problems)
    alphas = _by_module(module, overrides.alpha, f"{base}.alpha_by_pattern", chosen, problems)
    scales = _by_module(module, overrides.lr_scale, f"{base}.lr_scale_by_pattern", chosen, problems)
    if problems:
        raise AdapterError(*problems)
    plans: dict[str, LayerPlan] = {}
    for name, layer in adaptable_modules(module):
        if name not in chosen:
            continue
        rank, alpha = spec.rank, spec.alpha
        is_conv = isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
        if is_conv:
            rank, alpha = _changed(rank, alpha, spec.conv_rank, spec.conv_alpha)
        lr_scale = 1.0
        if spec.blocks is not None:
            block = block_index(name, spec.blocks.layout)
            own_ranks = spec.blocks.conv_ranks if is_conv else spec.blocks.ranks
            own_alphas = spec.blocks.conv_alphas if is_conv else spec.blocks.alphas
            rank, alpha = _changed(rank, alpha, _at(own_ranks, block), _at(own_alphas, block))
            block_scale = _at(spec.blocks.lr_scales, block)
            lr_scale = 1.0 if block_scale is None else block_scale
        rank, alpha = _changed(rank, alpha, ranks.get(name), alphas.get(name))
        lr_scale = scales.get(name, lr_scale)
        if rank > 0 and lr_scale > 0:
            alpha = alpha * math.sqrt(rank) if spec.rank_stabilized else alpha
            plans[name] = LayerPlan(rank, alpha, lr_scale)
    if not plans:
        text = f"{base} leaves no module with an adapter: every rank or rate is 0."
        raise AdapterError(Problem(base, text))
    return plans


def _by_module(
    module: nn.Module,
    values: Mapping[str, _T],
    key: str,
    chosen: set[str],
    problems: list[Problem],
) -> dict[str, _T]:
    """Return the value of every module that a pattern names; the last pattern wins."""
    try:
        hits = match_targets(module, tuple(values), key=key)
    except AdapterError as error:
        problems += error.problems
        return {}
    for pattern, names in hits.items():
        if not chosen.intersection(names):
            text = f"{key} holds {pattern!r}, which matches only modules that are not targets, "
            problems.append(Problem(key, f"{text}such as {names[0]}; add them to the targets."))
    return {name: values[pattern] for pattern, names in hits.items() for name in names}


def _changed(
    rank: int, alpha: float, new_rank: int | None, new_alpha: float | None
) -> tuple[int, float]:
    """Return rank and alpha after a rule; a rank alone keeps the scale."""
    if new_rank is not None:
        alpha, rank = (alpha * new_rank / rank if rank else alpha), new_rank
    return rank, alpha if new_alpha is None else new_alpha


def _at(values: tuple[_T, ...], block: int | None) -> _T | None:
    return values[block] if values and block is not None else None

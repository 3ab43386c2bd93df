"""Putting an adapter on a part of the model, counting it beforehand, switching it off.

Targets are matched in ``targets.py``; which kinds exist is in ``kinds.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from loralab.adapters.dropout import add_dropouts
from loralab.adapters.kinds import kind_of
from loralab.adapters.layers import adaptable_modules, adapter_layers, adapter_parameters
from loralab.adapters.plan import LayerPlan, plan_layers
from loralab.adapters.spec import AdapterSpec
from loralab.adapters.targets import match_targets

__all__ = [
    "InjectionReport",
    "adapter_disabled",
    "count_parameters",
    "inject",
    "match_targets",
]


@dataclass(frozen=True)
class InjectionReport:
    """What one injection did.

    Attributes:
        part: The part's name, e.g. ``unet``.
        num_modules: Adapted modules; one hit by two targets counts once.
        num_parameters: Trainable parameters.
        hits: Number of modules each target matched.
    """

    part: str
    num_modules: int
    num_parameters: int
    hits: Mapping[str, int]


def count_parameters(module: nn.Module, spec: AdapterSpec, *, part: str = "") -> int:
    """Return the number of parameters that ``inject`` would add; the module may be on meta.

    Raises:
        AdapterError: The kind is unknown, a target matches nothing, or a layer cannot be cut.
    """
    return sum(layer_sizes(module, spec, plan_layers(module, spec, part=part)).values())


def layer_sizes(
    module: nn.Module, spec: AdapterSpec, plans: Mapping[str, LayerPlan]
) -> dict[str, int]:
    """Return the number of parameters of every planned layer's adapter."""
    kind = kind_of(spec)
    return {
        name: kind.num_parameters(layer, spec, plans[name].rank)
        for name, layer in adaptable_modules(module)
        if name in plans
    }


def block_sizes(
    module: nn.Module, spec: AdapterSpec, plans: Mapping[str, LayerPlan]
) -> tuple[int, ...]:
    """Return the sizes of the planned layers' rotations, ascending; empty of kinds without."""
    kind = kind_of(spec)
    sizes = {
        kind.block_size(layer, spec, plans[name].rank)
        for name, layer in adaptable_modules(module)
        if name in plans
    }
    return tuple(sorted(size for size in sizes if size is not None))


def parameter_shapes(
    module: nn.Module, spec: AdapterSpec, plans: Mapping[str, LayerPlan]
) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """Return name and shape of every parameter of each planned layer's adapter.

    The module may be on meta: one layer of each kind, shape and rank is adapted for real.
    """
    kind, seen = kind_of(spec), dict[object, list[tuple[str, tuple[int, ...]]]]()
    found = {}
    for path, layer in adaptable_modules(module):
        if path not in plans:
            continue
        rank = plans[path].rank
        assert isinstance(layer.weight, torch.Tensor)
        key = (type(layer), layer.weight.shape, rank)
        if key not in seen:
            own = copy.deepcopy(layer).to_empty(device="cpu").requires_grad_(False)
            nn.init.ones_(own.weight)  # type: ignore[arg-type]
            holder = nn.ModuleDict({"layer": own})
            with torch.random.fork_rng(devices=[]):
                kind.attach(holder, spec, {"layer": plans[path]})
            (adapted,) = adapter_layers(holder).values()
            seen[key] = [(n, tuple(p.shape)) for n, p in adapter_parameters(adapted)]
        found[path] = seen[key]
    return found


def inject(
    module: nn.Module, spec: AdapterSpec, *, part: str, dtype: torch.dtype = torch.float32
) -> InjectionReport:
    """Freeze a module and add an adapter that changes nothing yet.

    The draw depends on torch's global CPU generator and the shapes alone, not on the dtype or
    device of the base; the caller seeds it. It is drawn in float32.

    Args:
        module: The part.
        spec: What it gets.
        part: Its name.
        dtype: In which the adapter is kept; kinds other than ``lora`` are float32.

    Raises:
        AdapterError: The kind is unknown, a target matches nothing, or a layer cannot be cut.
    """
    assert not adapter_layers(module), f"{part} has an adapter already"
    kind = kind_of(spec)
    plans = plan_layers(module, spec, part=part)
    num_parameters = sum(layer_sizes(module, spec, plans).values())
    hits = match_targets(module, spec.targets, part=part)

    module.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # PEFT draws too; only our draw may count
        kind.attach(module, spec, plans)
    layers = adapter_layers(module)
    assert layers.keys() == plans.keys(), "other modules were adapted than were planned"
    for layer in layers.values():
        assert isinstance(layer, nn.Module)
        layer.train(layer.get_base_layer().training)  # PEFT's own submodules start in train mode
        for _, parameter in adapter_parameters(layer):
            parameter.data = parameter.data.to(torch.float32)
        kind.initialize(layer)
        for _, parameter in adapter_parameters(layer):
            parameter.data = parameter.data.to(dtype)
        if isinstance(layer, LoraLayer):
            add_dropouts(layer, spec)

    added = sum(p.numel() for layer in layers.values() for _, p in adapter_parameters(layer))
    assert added == num_parameters, f"counted {num_parameters} parameters, injected {added}"
    return InjectionReport(
        part, len(layers), added, {target: len(found) for target, found in hits.items()}
    )


@contextmanager
def adapter_disabled(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run the base model inside the block, bit for bit, and put back what was before.

    Modules without an adapter are allowed. ``requires_grad`` flags are put back as well, since
    PEFT clears them with the adapter.
    """
    layers = [layer for module in modules for layer in adapter_layers(module).values()]
    enabled = [layer for layer in layers if not layer.disable_adapters]
    flags = [(p, p.requires_grad) for layer in enabled for _, p in adapter_parameters(layer)]
    try:
        for layer in enabled:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in enabled:
            layer.enable_adapters(True)
        for parameter, required in flags:
            parameter.requires_grad_(required)

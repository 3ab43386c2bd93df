"""Putting an adapter on a part of the model, counting it beforehand, switching it off.

Targets are matched in ``targets.py``; which kinds exist is in ``kinds.py``.
"""

from __future__ import annotations

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


def inject(module: nn.Module, spec: AdapterSpec, *, part: str) -> InjectionReport:
    """Freeze a module and add a float32 adapter that changes nothing yet.

    The draw depends on torch's global CPU generator and the shapes alone, not on the dtype or
    device of the base; the caller seeds it.

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

"""An adapter's updates in the weights of a model, for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from loralab.adapters.fit import Fitted
from loralab.adapters.layers import adaptable_modules


@contextmanager
def merged(
    adapter: Fitted, parts: Mapping[str, nn.Module], *, strength: float = 1.0
) -> Iterator[None]:
    """Add an adapter's updates to a model inside the block; then put the weights back.

    Args:
        adapter: Modules by part and live path.
        parts: The model's parts by name.
        strength: Multiple of the updates.
    """
    originals: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        try:
            for part, layers in adapter.items():
                bases = dict(adaptable_modules(parts[part]))
                for name, weights in layers.items():
                    weight = bases[name].weight
                    assert isinstance(weight, Tensor)
                    originals.append((weight, weight.clone()))
                    weight += strength * weights.delta(weight.float()).to(weight)
            yield
        finally:
            for weight, original in originals:
                weight.copy_(original)

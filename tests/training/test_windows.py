"""A step does not depend on how its window is cut: accumulation, micro-batches, short tails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor

from loralab.data.dataset import Item

Make = Callable[..., Any]

# (micro-batch size, accumulation) that see seven images in one step; the short last micro-batches
# have 3, 2, 1, 1, 3, 1 and 1 images, and the last two cuts end in a filler.
WHOLE = (7, 1)
CUTS = [(4, 2), (5, 2), (6, 2), (3, 3), (4, 3), (2, 4), (3, 4)]


class FirstGradient(L.Callback):
    """Keeps the gradient of the first step, before clipping."""

    def __init__(self) -> None:
        self.gradient: Tensor | None = None

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any
    ) -> None:
        if self.gradient is None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            assert all(p.grad is not None for p in parameters)
            self.gradient = torch.cat([p.grad.flatten().clone() for p in parameters])


@pytest.fixture
def seven(items: list[Item]) -> list[Item]:
    """Seven images of one bucket; an image that comes twice is another repeat."""
    square = [item for item in items if item.bucket.height == item.bucket.width]
    assert len(square) >= 3
    return [replace(square[n % len(square)], repeat=n) for n in range(7)]


def weighted(items: list[Item], weights: list[float]) -> list[Item]:
    """Return the items with loss weights."""
    pairs = zip(items, weights, strict=True)
    return [replace(item, record=replace(item.record, weight=weight)) for item, weight in pairs]


@pytest.mark.parametrize(
    "weights", [[1.0] * 7, [1, 2, 0.5, 1, 0.25, 3, 1]], ids=["alike", "weighted"]
)
def test_every_cut_of_a_window_gives_the_gradient_of_one_large_batch(
    make_module: Make,
    make_data: Make,
    make_trainer: Make,
    seven: list[Item],
    weights: list[float],
) -> None:
    def gradient(cut: tuple[int, int]) -> Tensor:
        size, accumulation = cut
        catch = FirstGradient()
        trainer = make_trainer(max_steps=1, accumulate_grad_batches=accumulation, callbacks=[catch])
        chosen = weighted(seven, weights)
        module = make_module()
        for part in module.adapted.values():
            part.double()  # in float32 the kernels themselves round by the size of a batch: 7e-6
        trainer.fit(module, make_data(chosen, batch_size=size, accumulation=accumulation))
        assert catch.gradient is not None
        return catch.gradient

    whole = gradient(WHOLE)
    assert whole.norm() > 1e-3
    differences = {cut: float((gradient(cut) - whole).norm() / whole.norm()) for cut in CUTS}
    assert max(differences.values()) < 1e-6, differences
    print(f"largest relative difference: {max(differences.values()):.1e}")

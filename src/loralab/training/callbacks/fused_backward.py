"""The optimizer's step inside the backward pass: a gradient is gone as soon as it has been used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


class FusedBackward(L.Callback):
    """Steps every parameter when its gradient is complete, so that one gradient exists at a time.

    Exact for optimizers that keep all they know by parameter, without clipping and accumulation.
    The optimizer's own step after the pass finds no gradients and does nothing.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Wait for the gradients; the groups are those of the checkpoint by now."""
        (optimizer,) = trainer.optimizers
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                hook = _step_of(optimizer, group)
                self._handles.append(parameter.register_post_accumulate_grad_hook(hook))

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Leave the parameters as they were."""
        while self._handles:
            self._handles.pop().remove()


def _step_of(optimizer: Optimizer, group: dict[str, Any]) -> Callable[[Tensor], None]:
    """Return what steps a single parameter at the present rate of its group."""

    def step(parameter: Tensor) -> None:
        groups = optimizer.param_groups
        optimizer.param_groups = [{**group, "params": [parameter]}]
        try:
            optimizer.step()
        finally:
            optimizer.param_groups = groups
        parameter.grad = None

    return step

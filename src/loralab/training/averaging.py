"""Averages of the adapter's weights: which weights are measured, drawn and exported.

Training always goes on with the live weights, bit for bit, whatever was looked at in between.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from loralab.training.callbacks.steps import StepCallback


class MovingAverage(StepCallback):
    """An exponential moving average of the adapter: ``a <- d a + (1 - d) w``, in checkpoints too.

    Attributes:
        weights: The average by the names of the module's state; empty before training.
        num_updates: Updates so far.
    """

    def __init__(
        self,
        *,
        decay: float,
        warmup: bool,
        start_step: int,
        every_n_steps: int,
        use_for: Collection[str],
    ) -> None:
        """Keep the options.

        Args:
            decay: Share of the old average in the new one.
            warmup: The n-th update, from 0, has the decay ``(1 + n) / (10 + n)`` while that is
                smaller, and the first one copies the weights.
            start_step: Optimizer steps in which the average is the live weights.
            every_n_steps: Optimizer steps between updates.
            use_for: Of ``validation``, ``preview`` and ``export``: what takes the average.
        """
        self.decay = decay
        self.warmup = warmup
        self.start_step = start_step
        self.every_n_steps = every_n_steps
        self.use_for = frozenset(use_for)
        self.weights: dict[str, Tensor] = {}
        self.num_updates = 0

    def decay_now(self) -> float:
        """Return the decay of the next update."""
        if not self.warmup:
            return self.decay
        count = self.num_updates
        return min(self.decay, (1 + count) / (10 + count)) if count else 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin with the weights as they are, or go on with the average of the checkpoint."""
        super().on_train_start(trainer, module)
        live = module.state_dict()
        kept = self.weights or live
        self.weights = {name: kept[name].clone().to(live[name]) for name in live}

    def on_step_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Take in the weights when it is time."""
        step, live = trainer.global_step, module.state_dict()
        if step <= self.start_step:
            self._blend(live, 0.0)
        elif (step - self.start_step) % self.every_n_steps == 0:
            self._blend(live, self.decay_now())
            self.num_updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of its updates."""
        return {"weights": self.weights, "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the average of a checkpoint."""
        self.weights, self.num_updates = dict(state["weights"]), state["num_updates"]

    def _blend(self, live: Mapping[str, Tensor], decay: float) -> None:
        for name, average in self.weights.items():
            average.lerp_(live[name], 1.0 - decay)


def is_schedule_free(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer holds its average in place of the weights on request.

    Such optimizers (Defazio et al. 2024, "The road less scheduled") have ``train`` and ``eval``.
    """
    return all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))


def schedule_free_weights(optimizer: Any, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of a schedule-free optimizer's average.

    There and back, the optimizer's own arithmetic is not exact, so the weights are put back.

    Args:
        optimizer: In train mode; it stays in it.
        live: Tensors that share memory with its parameters.
    """
    kept = copy_of(live)
    optimizer.eval()
    average = copy_of(live)
    optimizer.train()
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(kept[name])
    return average


def copy_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors in memory of their own."""
    return {name: tensor.clone() for name, tensor in weights.items()}

"""Optimizer steps as callbacks see them; Lightning tells of micro-batches only."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor


class StepCallback(L.Callback):
    """A callback that is told of every optimizer step once, when it has been taken."""

    _last_step = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin to count at the step of the checkpoint."""
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Tell of a step if this micro-batch ended one."""
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self.on_step_end(trainer, module)

    def on_step_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Take notice; ``trainer.global_step`` counts the step that has been taken."""


def gradient_scale(trainer: L.Trainer, optimizer: Any) -> float:
    """Return what the gradients are too long by before an optimizer step, 1 as a rule.

    With `16-mixed` the loss is scaled up. Lightning scales the gradients down before its hook,
    except for optimizers that do so in their own step: fused ones.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())


def gradient_norm(trainer: L.Trainer, optimizer: Any) -> Tensor | None:
    """Return the norm () of all gradients together, over all parameter groups; None without any."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        return None
    norm: Tensor = torch.stack(list(torch._foreach_norm(present))).norm()
    return norm / gradient_scale(trainer, optimizer)

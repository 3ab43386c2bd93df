"""What is done to adapters while they are trained: limits, freezing, looking for dead ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from loralab.adapters.layers import adapter_layers, adapter_parameters
from loralab.adapters.norms import effective_rank, limit_norm
from loralab.adapters.state import trainable_parameters, update_norm
from loralab.training.callbacks.steps import StepCallback
from loralab.training.module import LoRATrainingModule

MOST_NAMED = 5


class WeightNormLimit(StepCallback):
    """Keeps the norm of every module's update within a limit, after every optimizer step."""

    def __init__(self, norm: str, largest: float) -> None:
        """Take ``frobenius`` or ``spectral`` and the limit."""
        self.norm, self.largest = norm, largest

    def on_step_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Scale down what exceeds the limit."""
        assert isinstance(module, LoRATrainingModule)
        for part in module.adapted.values():
            for layer in adapter_layers(part).values():
                limit_norm(layer, norm=self.norm, largest=self.largest)


class Freezing(L.Callback):
    """Ends the training of parts after a number of optimizer steps."""

    def __init__(self, steps: Mapping[str, int]) -> None:
        """Take the number of steps of every part that is frozen."""
        self.steps = dict(steps)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Freeze what is due; a resumed run freezes at once what was frozen before."""
        assert isinstance(module, LoRATrainingModule)
        for name, steps in self.steps.items():
            if trainer.global_step >= steps:
                for parameter in trainable_parameters(module.adapted[name]):
                    parameter.requires_grad_(False)
                    parameter.grad = None


class DeadAdapters(StepCallback):
    """Names modules that get no gradient or do not move, and logs how many directions they use."""

    def __init__(self, after_steps: int = 20, every_n_steps: int | None = None) -> None:
        """Set the times.

        Args:
            after_steps: Optimizer steps after which dead modules are named, once.
            every_n_steps: Optimizer steps between effective ranks; None logs them only then.
        """
        self.after_steps, self.every_n_steps = after_steps, every_n_steps
        self.dead: list[str] = []  # the sentences, for whoever asks
        self._largest: dict[str, Tensor] = {}

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Keep the largest gradient of every part's modules until the check."""
        assert isinstance(module, LoRATrainingModule)
        if trainer.global_step >= self.after_steps:
            return
        for name, part in module.adapted.items():
            rows = [
                torch.stack([_largest_gradient(p) for _, p in adapter_parameters(layer)]).amax()
                for layer in adapter_layers(part).values()
            ]
            seen = torch.stack(rows)
            self._largest[name] = torch.maximum(self._largest.get(name, seen), seen)

    def on_step_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Look, when it is time."""
        assert isinstance(module, LoRATrainingModule)
        step = trainer.global_step
        if not trainer.is_global_zero:
            return
        is_check = step == self.after_steps
        if is_check:
            self.dead = self._sentences(module)
            for sentence in self.dead:
                print(f"warning: {sentence}", flush=True)
        if is_check or (self.every_n_steps and step % self.every_n_steps == 0):
            figures = effective_ranks(module)
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=step)

    def _sentences(self, module: LoRATrainingModule) -> list[str]:
        sentences = []
        for name, part in module.adapted.items():
            layers = adapter_layers(part)
            without = [
                path
                for path, size in zip(layers, self._largest.get(name, []), strict=False)
                if float(size) == 0
            ]
            still = [
                p for p, layer in layers.items() if p not in without and not update_norm(layer)
            ]
            for paths, what in ((without, "got no gradient"), (still, "did not move")):
                if paths:
                    shown = ", ".join(paths[:MOST_NAMED])
                    more = f" and {len(paths) - MOST_NAMED} more" if len(paths) > MOST_NAMED else ""
                    sentences.append(
                        f"{len(paths)} of {len(layers)} adapters of {name} {what} in "
                        f"{self.after_steps} steps: {shown}{more}; leave them out of the targets, "
                        "or look at their rate and dropout."
                    )
        return sentences


def effective_ranks(module: LoRATrainingModule) -> dict[str, float]:
    """Return the effective rank of every module that has one."""
    ranks = {
        f"effective_rank/{name}.{path}": effective_rank(layer)
        for name, part in module.adapted.items()
        for path, layer in adapter_layers(part).items()
    }
    return {name: rank for name, rank in ranks.items() if rank is not None}


def _largest_gradient(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    return torch.zeros((), device=parameter.device) if gradient is None else gradient.abs().amax()

"""How many images a step could use: the gradient noise scale (McCandlish et al. 2018).

"An Empirical Model of Large-Batch Training", equation 2.9 and appendix A.1: with gradients of
batches of two sizes, the squared length of the true gradient and the trace of its covariance have
unbiased estimates; their ratio is a batch size beyond which more images hardly help.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from torch import Tensor

from loralab.training.callbacks.steps import StepCallback, gradient_scale

MEMORY = 0.9  # share of the old estimates in the new ones; a single window says little


class NoiseEstimate(NamedTuple):
    """Unbiased estimates: each may be below zero by chance.

    Attributes:
        signal: Squared length of the true gradient.
        noise: Trace of the covariance of one image's gradient.
    """

    signal: float
    noise: float


def estimate_noise(
    mean_square: float, square_of_mean: float, *, batch: int, count: int
) -> NoiseEstimate:
    """Return signal and noise from the gradients of `count` batches of equal size.

    Args:
        mean_square: Mean of the gradients' squared lengths.
        square_of_mean: Squared length of their mean.
        batch: Images in a batch.
        count: Batches, at least 2.
    """
    large = batch * count
    signal = (large * square_of_mean - batch * mean_square) / (large - batch)
    noise = (mean_square - square_of_mean) / (1 / batch - 1 / large)
    return NoiseEstimate(signal, noise)


class GradientNoise(StepCallback):
    """Logs `gradient/noise_scale`, in images, after every window of steps.

    The steps of a window stand for batches at the same weights, so a window should be short
    against the run. Gradients are taken before clipping; one copy of them is kept. Steps whose
    gradients overflowed in float16 are skipped, and count in no window.
    """

    def __init__(self, window: int = 8) -> None:
        """Set the number of steps in a window."""
        if window < 2:
            raise ValueError(f"window is {window}; it must be at least 2")
        self.window = window
        self._sums: list[Tensor] = []
        self._squares, self._steps, self._images = 0.0, 0, 0
        self._images_of_step = 0
        self._smooth: list[float] = []  # signal, noise

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the images of the step."""
        self._images_of_step += int((batch["loss_weight"] > 0).sum()) * trainer.world_size

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any
    ) -> None:
        """Add the gradient of the step."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [  # of weights in bfloat16 they are float32
            torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad
            for p in parameters
        ]
        if (scale := gradient_scale(trainer, optimizer)) != 1.0:
            gradients = [gradient / scale for gradient in gradients]
        norms = torch.stack(list(torch._foreach_norm(gradients)))
        images, self._images_of_step = self._images_of_step, 0
        squares = float(norms.square().sum())
        if not math.isfinite(squares):
            return
        self._squares += squares
        self._images += images
        if self._sums:
            torch._foreach_add_(self._sums, gradients)
        else:
            self._sums = [gradient.clone() for gradient in gradients]
        self._steps += 1

    def on_step_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Estimate and log at the end of a window."""
        if self._steps < self.window:
            return
        norms = torch.stack(list(torch._foreach_norm(self._sums))) / self._steps
        found = estimate_noise(
            self._squares / self._steps,
            float(norms.square().sum()),
            batch=max(1, round(self._images / self._steps)),
            count=self._steps,
        )
        old = self._smooth or list(found)
        self._smooth = [MEMORY * a + (1 - MEMORY) * b for a, b in zip(old, found, strict=True)]
        signal, noise = self._smooth
        figures = {"gradient/signal": signal, "gradient/noise": noise}
        if signal > 0 and math.isfinite(noise):
            figures["gradient/noise_scale"] = noise / signal
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
        self._sums, self._squares, self._steps, self._images = [], 0.0, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the estimates and the window under way."""
        return {"smooth": self._smooth, "sums": self._sums, "squares": self._squares,
                "steps": self._steps, "images": self._images}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the window of a checkpoint."""
        self._smooth, self._sums = list(state["smooth"]), list(state["sums"])
        self._squares, self._steps = state["squares"], state["steps"]
        self._images = state["images"]

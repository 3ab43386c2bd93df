"""A range test of learning rates (Smith 2017) on a loss that does not jump about.

The loss of a training step depends on the images, timesteps and noise that it drew far more than
on the rate. So after every step the same few images are measured at the same noise and timesteps,
and the curve shows the weights alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import lightning.pytorch as L
import torch
from torch import Tensor

from loralab.diffusion.timesteps import fixed_strata
from loralab.training.callbacks.steps import StepCallback
from loralab.training.module import LoRATrainingModule
from loralab.training.validation import measure

HOPELESS = 2.0  # multiple of the first loss at which the test ends


class RangeTest(StepCallback):
    """Measures after every step, and ends the run when the loss has blown up.

    Attributes:
        losses: The first before any step, then one after each.
    """

    def __init__(self, *, seed: int, strata: int) -> None:
        """Keep the noise's seed and the number of timesteps each image is measured at."""
        self.seed = seed
        self.strata = strata
        self.losses: list[float] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Measure where the weights start."""
        super().on_train_start(trainer, module)
        self._measure(trainer, module)

    def on_step_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Measure what the step has done."""
        self._measure(trainer, module)
        last = self.losses[-1]
        trainer.should_stop |= not last < HOPELESS * self.losses[0]

    def _measure(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, LoRATrainingModule)
        loader = trainer.datamodule.held_out_loader()  # type: ignore[attr-defined]
        count = module.objective.schedule.num_timesteps
        timesteps = fixed_strata(self.strata, num_timesteps=count)
        with module.weights_for("validation"):
            errors = measure(trainer, module, loader, seed=self.seed, timesteps=timesteps)
        self.losses.append(float(errors.double().mean()))


def rising_rates(low: float, high: float, steps: int) -> list[float]:
    """Return so many rates from low to high, each the same multiple of the one before."""
    growth = (high / low) ** (1.0 / max(1, steps - 1))
    return [low * growth**step for step in range(steps)]


def suggest_rate(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the rate at which the loss falls fastest with the logarithm of the rate.

    Args:
        rates: Ascending, one for each step.
        losses: One more: before the first step, then after each.

    Returns:
        None when the loss never falls.
    """
    usable = [loss for loss in losses if math.isfinite(loss)]
    count = min(len(usable), len(rates) + 1)
    if count < 3:
        return None
    smooth = _smooth(torch.tensor(usable[:count], dtype=torch.float64), width=max(1, count // 20))
    lowest = int(smooth.argmin())
    if lowest < 1:
        return None
    falls = smooth[:-1] - smooth[1:]  # steps are even in the logarithm of the rate
    return rates[int(falls[:lowest].argmax())]


def _smooth(values: Tensor, *, width: int) -> Tensor:
    """Return the mean of each value and up to `width` neighbours on either side."""
    rows = [values[max(0, n - width) : n + width + 1].mean() for n in range(len(values))]
    return torch.stack(rows)

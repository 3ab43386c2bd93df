"""The training objective: draw a noisy sample, compare the prediction with its target.

Draw and loss live together because the target, the weighting and the timesteps must agree. Which
model predicts, and on what condition, is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loralab.diffusion.noise import draw_noise
from loralab.diffusion.schedule import NoiseSchedule
from loralab.diffusion.timesteps import uniform_timesteps
from loralab.diffusion.weighting import WEIGHTINGS, loss_weights


@dataclass(frozen=True)
class NoisyLatents:
    """What the denoiser is shown, and what it was made from.

    Attributes:
        noisy: (B, C, h, w) float32.
        noise: (B, C, h, w) float32, standard normal.
        timesteps: (B,) int64.
    """

    noisy: Tensor
    noise: Tensor
    timesteps: Tensor


@dataclass(frozen=True)
class LossTerms:
    """One micro-batch's loss, whole and by sample; all float32.

    Attributes:
        loss: () this micro-batch's share of its window's loss; the value to differentiate.
        per_sample: (B,) error after the weighting of timesteps, before the sample's share.
        error: (B,) plain mean squared error, without a gradient: for logs.
    """

    loss: Tensor
    per_sample: Tensor
    error: Tensor


class Objective(nn.Module):
    """Mean squared error between a prediction and the schedule's target, weighed by timestep."""

    def __init__(
        self,
        schedule: NoiseSchedule,
        *,
        weighting: str = "constant",
        min_snr_gamma: float = 5.0,
        min_timestep: int = 0,
        max_timestep: int = 1000,
    ) -> None:
        """Put the parts together.

        Args:
            schedule: The base model's own noise schedule.
            weighting: A key of `loralab.diffusion.weighting.WEIGHTINGS`.
            min_snr_gamma: The cap of ``"min_snr"``; above 0.
            min_timestep: Smallest timestep drawn.
            max_timestep: One above the largest timestep drawn.
        """
        super().__init__()
        assert weighting in WEIGHTINGS, weighting
        assert min_snr_gamma > 0, min_snr_gamma
        assert 0 <= min_timestep < max_timestep <= schedule.num_timesteps, (
            f"timesteps [{min_timestep}, {max_timestep}) of {schedule.num_timesteps}"
        )
        self.schedule = schedule
        self.weighting = weighting
        self.min_snr_gamma = min_snr_gamma
        self.min_timestep = min_timestep
        self.max_timestep = max_timestep

    def draw(
        self,
        latents: Tensor,
        generators: Sequence[torch.Generator],
        *,
        timesteps: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> NoisyLatents:
        """Draw timesteps and noise, or take recorded ones, and mix.

        Draws are made on the CPU, so they are the same on every device. Recorded timesteps leave
        the drawn noise as it was, and recorded noise the drawn timesteps.

        Args:
            latents: (B, C, h, w) scaled latents, any float dtype.
            generators: B CPU generators, one per sample; not read when both others are given.
            timesteps: (B,) int64 in [0, T) to use in place of drawn ones.
            noise: (B, C, h, w) to use in place of drawn noise.

        Returns:
            The sample, on the device of `latents`.
        """
        if timesteps is None or noise is None:
            # Timesteps first and always: a draw's place in the stream must not depend on the image
            # size or on what was recorded.
            drawn = uniform_timesteps(generators, low=self.min_timestep, high=self.max_timestep)
            timesteps = drawn if timesteps is None else timesteps
            noise = draw_noise(latents.shape, generators) if noise is None else noise
        timesteps = timesteps.to(latents.device)
        noise = noise.to(latents.device, torch.float32)
        noisy = self.schedule.add_noise(latents, noise, timesteps)
        return NoisyLatents(noisy=noisy, noise=noise, timesteps=timesteps)

    def forward(
        self, prediction: Tensor, latents: Tensor, sample: NoisyLatents, *, weight: Tensor
    ) -> LossTerms:
        """Return the loss of a prediction, computed in float32.

        The loss is a sum, not a mean: `weight` holds each sample's share of its whole window, and
        the shares of a window sum to 1. However a window is split into micro-batches, their losses
        and gradients add up to the same.

        Args:
            prediction: (B, C, h, w) the denoiser's answer to ``sample.noisy``.
            latents: (B, C, h, w) the latents that `sample` was drawn from.
            sample: What `draw` returned.
            weight: (B,) share of each sample; 0 for a filler.
        """
        assert prediction.shape == latents.shape, (prediction.shape, latents.shape)
        assert weight.shape == latents.shape[:1], (weight.shape, latents.shape)
        target = self.schedule.target(latents, sample.noise, sample.timesteps)
        error = (prediction.float() - target).square().flatten(1).mean(dim=1)  # (B,)
        per_sample = error * loss_weights(
            self.weighting,
            self.schedule.snr(sample.timesteps),
            gamma=self.min_snr_gamma,
            prediction_type=self.schedule.prediction_type,
        )
        share = weight.to(per_sample.device, torch.float32)
        return LossTerms(
            loss=(share * per_sample).sum(), per_sample=per_sample, error=error.detach()
        )

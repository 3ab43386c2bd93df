"""The training objective: draw a noisy sample, compare the prediction with its target.

Draw and loss live together because the target, the weighting and the timesteps must agree. Which
model predicts, and on what condition, is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loralab.diffusion.losses import LOSSES, masked_mean
from loralab.diffusion.noise import InputPerturbation, NoiseRecipe
from loralab.diffusion.schedule import NoiseSchedule
from loralab.diffusion.tables import TimestepTable
from loralab.diffusion.timesteps import TimestepSampler, WindowPlace


@dataclass(frozen=True)
class NoisyLatents:
    """What the denoiser is shown, and what it was made from.

    Attributes:
        noisy: (B, C, h, w) float32.
        noise: (B, C, h, w) float32, the noise that the target is made of.
        timesteps: (B,) int64.
        input_noise: (B, C, h, w) float32, the noise that `noisy` holds; `noise` unless it is
            perturbed.
    """

    noisy: Tensor
    noise: Tensor
    timesteps: Tensor
    input_noise: Tensor


@dataclass(frozen=True)
class LossTerms:
    """One micro-batch's loss, whole and by sample; all float32.

    Attributes:
        loss: () this micro-batch's share of its window's loss; the value to differentiate.
        per_sample: (B,) loss after the weighting of timesteps, before the sample's share.
        error: (B,) plain mean squared error where the mask is, without a gradient: for logs.
    """

    loss: Tensor
    per_sample: Tensor
    error: Tensor


@dataclass(frozen=True)
class LossRecipe:
    """What a wrong prediction costs.

    Attributes:
        kind: A key of `loralab.diffusion.losses.LOSSES`.
        preservation: What of the base's own prediction is kept: ``"none"``, ``"output"`` or
            ``"outside_mask"``.
        preservation_weight: Weight of the mean squared distance from the base's prediction.
        by_area: A masked sample's loss is the mean over its mask; else over all cells.
    """

    kind: str = "l2"
    preservation: str = "none"
    preservation_weight: float = 1.0
    by_area: bool = True


class Objective(nn.Module):
    """Distance between a prediction and the schedule's target, weighed by timestep."""

    def __init__(
        self,
        schedule: NoiseSchedule,
        *,
        loss: LossRecipe | None = None,
        weights: Tensor | None = None,
        thresholds: Tensor | None = None,
        timesteps: TimestepSampler | None = None,
        noise: NoiseRecipe | None = None,
        perturbation: InputPerturbation | None = None,
    ) -> None:
        """Put the parts together; without options, the mean squared error at uniform timesteps.

        Args:
            schedule: The base model's own noise schedule.
            loss: What a wrong prediction costs.
            weights: (T,) how much each timestep counts; None counts all alike.
            thresholds: (T,) where a Huber loss turns from square to straight; None is 1.
            timesteps: Which timesteps are drawn; within the schedule.
            noise: What noise is drawn.
            perturbation: What more is added to the model's input.
        """
        super().__init__()
        ones = torch.ones(schedule.num_timesteps)
        self.schedule = schedule
        self.loss = loss or LossRecipe()
        self.weights = TimestepTable(ones if weights is None else weights)
        self.thresholds = TimestepTable(ones if thresholds is None else thresholds)
        self.timesteps = timesteps or TimestepSampler(high=schedule.num_timesteps)
        self.noise = noise or NoiseRecipe()
        self.perturbation = perturbation or InputPerturbation()
        assert len(self.weights) == len(self.thresholds) == schedule.num_timesteps
        assert self.timesteps.high <= schedule.num_timesteps, (
            f"timesteps below {self.timesteps.high} of {schedule.num_timesteps}"
        )

    @property
    def needs_teacher(self) -> bool:
        """Tell whether the base's own prediction is compared with."""
        return self.loss.preservation != "none"

    def draw(
        self,
        latents: Tensor,
        generators: Sequence[torch.Generator],
        *,
        timesteps: Tensor | None = None,
        noise: Tensor | None = None,
        input_noise: Tensor | None = None,
        window: WindowPlace | None = None,
    ) -> NoisyLatents:
        """Draw timesteps and noise, or take recorded ones, and mix.

        Draws are made on the CPU, so they are the same on every device. Recorded timesteps leave
        the drawn noise as it was, and recorded noise the drawn timesteps.

        Args:
            latents: (B, C, h, w) scaled latents, any float dtype.
            generators: B CPU generators, one per sample; not read when both others are given.
            timesteps: (B,) int64 in [0, T) to use in place of drawn ones.
            noise: (B, C, h, w) to use in place of drawn noise; it is not perturbed.
            input_noise: (B, C, h, w) to mix in, where it is not `noise`; only with `noise`.
            window: Where these samples stand in their window, for timesteps spread over it.

        Returns:
            The sample, on the device of `latents`.
        """
        if timesteps is None or noise is None:
            # Timesteps first and always: a draw's place in the stream must not depend on the image
            # size or on what was recorded.
            drawn = self.timesteps(generators, window)
            timesteps = drawn if timesteps is None else timesteps
        timesteps = timesteps.to(latents.device)
        if noise is None:
            noise = self.noise.draw(latents, generators)
            shown = self.perturbation(noise, generators)
        else:
            noise = shown = noise.to(latents.device, torch.float32)
            if input_noise is not None:
                shown = input_noise.to(latents.device, torch.float32)
        noisy = self.schedule.add_noise(latents, shown, timesteps)
        return NoisyLatents(noisy=noisy, noise=noise, timesteps=timesteps, input_noise=shown)

    def forward(
        self,
        prediction: Tensor,
        latents: Tensor,
        sample: NoisyLatents,
        *,
        weight: Tensor,
        mask: Tensor | None = None,
        teacher: Tensor | None = None,
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
            mask: (B, 1, h, w) in [0, 1], where the prediction is compared; None is everywhere.
            teacher: (B, C, h, w) the base's answer to ``sample.noisy``, to stay near to.
        """
        assert prediction.shape == latents.shape, (prediction.shape, latents.shape)
        assert weight.shape == latents.shape[:1], (weight.shape, latents.shape)
        assert teacher is None or self.needs_teacher, self.loss.preservation
        prediction = prediction.float()
        target = self.schedule.target(latents, sample.noise, sample.timesteps)
        difference, by_area = prediction - target, self.loss.by_area
        threshold = self.thresholds(sample.timesteps).view(-1, 1, 1, 1)
        losses = LOSSES[self.loss.kind](difference, threshold)  # (B, C, h, w)
        per_sample = masked_mean(losses, mask, by_area=by_area)  # (B,)
        if teacher is not None:
            distance = (prediction - teacher.float()).square()
            kept = masked_mean(distance, self._kept_area(distance, mask))
            per_sample = per_sample + self.loss.preservation_weight * kept
        per_sample = per_sample * self.weights(sample.timesteps)
        share = weight.to(per_sample.device, torch.float32)
        error = masked_mean(difference.detach().square(), mask, by_area=by_area)
        return LossTerms(loss=(share * per_sample).sum(), per_sample=per_sample, error=error)

    def _kept_area(self, distance: Tensor, mask: Tensor | None) -> Tensor | None:
        """Return where the base's prediction is kept, (B, 1, h, w); None is everywhere."""
        if self.loss.preservation == "output":
            return None
        if mask is None:  # of class images alone, say: all is learnt, and nothing is outside
            return torch.zeros_like(distance[:, :1])
        return 1.0 - mask

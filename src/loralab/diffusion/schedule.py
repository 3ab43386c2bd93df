"""The forward process of a diffusion model: how much signal and noise each timestep holds.

Tables are computed in float64, unless asked otherwise, and kept in float32, whatever precision the
model runs in: in bfloat16 the first two timesteps of Stable Diffusion's schedule would get no noise
at all. Sampling (the reverse process) is not here; the models room does it for previews.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from loralab.diffusion.tables import TimestepTable
from loralab.diffusion.targets import TARGETS
from loralab.errors import ModelError, Problem

CONFIG_FILE = "scheduler/scheduler_config.json"
"""Where a model folder keeps the mapping that `NoiseSchedule.from_config` reads."""


class NoiseSchedule(nn.Module):
    """Mixes latents with noise, and says what the model is asked to predict.

    ``noisy = signal[t] * latents + sigma[t] * noise``. All arithmetic and all results are float32,
    also for inputs in half precision.

    Attributes:
        prediction_type: A key of `loralab.diffusion.targets.TARGETS`.
        signal: Factor of the latents, by timestep.
        sigma: Factor of the noise, by timestep.
        snr: Signal-to-noise ratio ``(signal / sigma) ** 2``, by timestep, descending.
    """

    def __init__(self, *, signal: Tensor, sigma: Tensor, prediction_type: str) -> None:
        """Keep the tables.

        Args:
            signal: (T,) descending, in [0, 1); the ratios are taken in its precision.
            sigma: (T,) ascending, in (0, 1].
            prediction_type: What the model predicts.
        """
        super().__init__()
        assert prediction_type in TARGETS, prediction_type
        assert signal.shape == sigma.shape, (signal.shape, sigma.shape)
        # Pure noise tells nothing about itself, and its loss weight would be 0 / 0.
        assert prediction_type != "epsilon" or signal[-1] > 0, "epsilon at zero SNR"
        self.prediction_type = prediction_type
        self.signal = TimestepTable(signal)
        self.sigma = TimestepTable(sigma)
        self.snr = TimestepTable((signal / sigma).square())

    @classmethod
    def from_betas(cls, betas: Tensor, *, prediction_type: str) -> NoiseSchedule:
        """Return the schedule that keeps the variance: ``signal ** 2 + sigma ** 2 == 1``.

        Ho et al., 2020, "DDPM", equation 4, https://arxiv.org/abs/2006.11239.

        Args:
            betas: (T,) variance of the noise added at each timestep, in (0, 1]; their precision is
                that of the calculation.
            prediction_type: Any but ``"flow_prediction"``.
        """
        assert prediction_type != "flow_prediction", "a flow mixes otherwise"
        assert betas.dim() == 1, betas.shape
        assert bool(((betas > 0) & (betas <= 1)).all()), "a beta is outside (0, 1]"
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        return cls(
            signal=alphas_cumprod.sqrt(),
            sigma=(1.0 - alphas_cumprod).sqrt(),
            prediction_type=prediction_type,
        )

    @classmethod
    def rectified_flow(cls, num_timesteps: int) -> NoiseSchedule:
        """Return the straight path from the latents to pure noise: ``sigma = (t + 1) / T``.

        Liu et al., 2022, "Flow Straight and Fast", https://arxiv.org/abs/2209.03003.
        """
        sigma = torch.arange(1, num_timesteps + 1, dtype=torch.float64) / num_timesteps
        return cls(signal=1.0 - sigma, sigma=sigma, prediction_type="flow_prediction")

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        prediction_type: str | None = None,
        zero_terminal_snr: bool | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> NoiseSchedule:
        """Read a model's own schedule from its scheduler file.

        Args:
            config: Content of ``scheduler/scheduler_config.json`` in the spelling of diffusers.
            prediction_type: Overrules the file's value; None trusts the file. A file without the
                field means ``"epsilon"``: it is older than the field.
            zero_terminal_snr: Overrules the file's ``rescale_betas_zero_snr``; None trusts it.
            dtype: Precision of the calculation; float32 gives the tables of diffusers to the bit.

        Raises:
            ModelError: A field is missing or its value unknown; every such problem is named.
        """
        chosen = prediction_type or config.get("prediction_type", "epsilon")
        if zero_terminal_snr is None:
            zero_terminal_snr = config.get("rescale_betas_zero_snr", False)
        problems = _config_problems(config, chosen, zero_terminal_snr)
        if problems:
            raise ModelError(*problems)
        if chosen == "flow_prediction":
            return cls.rectified_flow(config.get("num_train_timesteps", 1000))
        betas = _betas_from_config(config, dtype)
        if zero_terminal_snr:
            betas = rescale_to_zero_snr(betas)
        return cls.from_betas(betas, prediction_type=chosen)

    @property
    def num_timesteps(self) -> int:
        """Length T of the schedule; timesteps are 0 (nearly clean) to T - 1 (nearly noise)."""
        return len(self.snr)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noisy latents of each sample at its timestep.

        Args:
            latents: (B, C, h, w) scaled latents.
            noise: (B, C, h, w) standard normal.
            timesteps: (B,) int64 in [0, T).

        Returns:
            (B, C, h, w) float32.
        """
        signal, sigma = self._coefficients(latents, noise, timesteps)
        return signal * latents.float() + sigma * noise.float()

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the model should predict, (B, C, h, w) float32; shapes as in `add_noise`."""
        signal, sigma = self._coefficients(latents, noise, timesteps)
        return TARGETS[self.prediction_type](latents.float(), noise.float(), signal, sigma)

    def _coefficients(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert latents.shape == noise.shape, (latents.shape, noise.shape)
        assert timesteps.shape == latents.shape[:1], (timesteps.shape, latents.shape)
        # One dimension per sample, or broadcasting would spread it over the width.
        shape = (-1, *[1] * (latents.dim() - 1))
        return self.signal(timesteps).view(shape), self.sigma(timesteps).view(shape)


def rescale_to_zero_snr(betas: Tensor) -> Tensor:
    """Shift a schedule so that its last timestep is pure noise.

    Keeps the first timestep: with ``s = sqrt(alphas_cumprod)``, the new values are
    ``(s - s[-1]) * s[0] / (s[0] - s[-1])``. Lin et al., 2024, "Common Diffusion Noise Schedules
    and Sample Steps are Flawed", algorithm 1, https://arxiv.org/abs/2305.08891.

    Args:
        betas: (T,) in (0, 1).

    Returns:
        (T,) in the precision of `betas`; the last value is 1.
    """
    signal = torch.cumprod(1.0 - betas, dim=0).sqrt()
    signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    alphas_cumprod = signal.square()
    alphas = torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
    return 1.0 - alphas


def _linear(start: float, end: float, num_timesteps: int, dtype: torch.dtype) -> Tensor:
    return torch.linspace(start, end, num_timesteps, dtype=dtype)


def _scaled_linear(start: float, end: float, num_timesteps: int, dtype: torch.dtype) -> Tensor:
    """Linear in the square root: the schedule that Stable Diffusion was published with."""
    return _linear(math.sqrt(start), math.sqrt(end), num_timesteps, dtype).square()


BETA_SCHEDULES: dict[str, Callable[[float, float, int, torch.dtype], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
}


def _betas_from_config(config: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    trained = config.get("trained_betas")
    if trained is not None:
        return torch.tensor(trained, dtype=dtype)
    betas = BETA_SCHEDULES[config["beta_schedule"]]
    return betas(config["beta_start"], config["beta_end"], config["num_train_timesteps"], dtype)


def _config_problems(
    config: Mapping[str, Any], prediction_type: str, zero_terminal_snr: bool
) -> list[Problem]:
    messages = []
    if prediction_type not in TARGETS:
        messages.append(
            f"{CONFIG_FILE}: prediction_type is {prediction_type!r}; "
            f"it must be one of {', '.join(TARGETS)}. Set model.prediction_type."
        )
    if config.get("trained_betas") is None and prediction_type != "flow_prediction":
        needed = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
        messages += [
            f"{CONFIG_FILE}: {field} is missing; copy the file that belongs to the base model."
            for field in needed
            if config.get(field) is None
        ]
        schedule = config.get("beta_schedule")
        if schedule is not None and schedule not in BETA_SCHEDULES:
            messages.append(
                f"{CONFIG_FILE}: beta_schedule is {schedule!r}; it must be one of "
                f"{', '.join(BETA_SCHEDULES)}. Use a Stable Diffusion base model."
            )
    if zero_terminal_snr and prediction_type == "epsilon":
        messages.append(
            f"{CONFIG_FILE}: rescale_betas_zero_snr is true, which leaves an epsilon model nothing "
            "to predict from at the last timestep; set model.prediction_type to v_prediction."
        )
    return [Problem(CONFIG_FILE, message) for message in messages]

"""The forward process of a diffusion model: how much signal and noise each timestep holds.

Tables are computed in float64 and kept in float32, whatever precision the model runs in: in
bfloat16 the first two timesteps of Stable Diffusion's schedule would get no noise at all. Sampling
(the reverse process) is not here; the models room does it for previews.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from loralab.errors import ModelError, Problem

PREDICTION_TYPES = ("epsilon", "v_prediction")

CONFIG_FILE = "scheduler/scheduler_config.json"
"""Where a model folder keeps the mapping that `NoiseSchedule.from_config` reads."""


class NoiseSchedule(nn.Module):
    """Mixes latents with noise, and says what the model is asked to predict.

    With ``a = alphas_cumprod[t]``: ``noisy = sqrt(a) * latents + sqrt(1 - a) * noise``
    (Ho et al., 2020, "DDPM", equation 4, https://arxiv.org/abs/2006.11239).

    All arithmetic and all results are float32, also for inputs in half precision. Moving the
    module to another dtype leaves its tables in float32; moving it to a device moves them.

    Attributes:
        prediction_type: ``"epsilon"`` (the noise) or ``"v_prediction"`` (the velocity).
        alphas_cumprod: (T,) float32; share of signal variance at each timestep, descending.
    """

    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    snr_table: Tensor

    def __init__(self, *, betas: Tensor, prediction_type: str) -> None:
        """Compute the tables.

        Args:
            betas: (T,) variance of the noise added at each timestep, in (0, 1]; give float64.
            prediction_type: One of `PREDICTION_TYPES`.
        """
        super().__init__()
        assert prediction_type in PREDICTION_TYPES, prediction_type
        assert betas.dim() == 1, betas.shape
        assert bool(((betas > 0) & (betas <= 1)).all()), "a beta is outside (0, 1]"
        alphas_cumprod = torch.cumprod(1.0 - betas.double(), dim=0)
        # Pure noise tells nothing about itself, and its loss weight would be 0 / 0.
        assert prediction_type != "epsilon" or alphas_cumprod[-1] > 0, "epsilon at zero SNR"
        self.prediction_type = prediction_type
        tables = {
            "alphas_cumprod": alphas_cumprod,
            "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1.0 - alphas_cumprod).sqrt(),
            "snr_table": alphas_cumprod / (1.0 - alphas_cumprod),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, prediction_type: str | None = None
    ) -> NoiseSchedule:
        """Read a model's own schedule from its scheduler file.

        Args:
            config: Content of ``scheduler/scheduler_config.json`` in the spelling of diffusers.
            prediction_type: Overrules the file's value; None trusts the file. A file without the
                field means ``"epsilon"``: it is older than the field.

        Raises:
            ModelError: A field is missing or its value unknown; every such problem is named.
        """
        chosen = prediction_type or config.get("prediction_type", "epsilon")
        problems = _config_problems(config, chosen)
        if problems:
            raise ModelError(*problems)
        betas = _betas_from_config(config)
        if config.get("rescale_betas_zero_snr", False):
            betas = rescale_to_zero_snr(betas)
        return cls(betas=betas, prediction_type=chosen)

    @property
    def num_timesteps(self) -> int:
        """Length T of the schedule; timesteps are 0 (nearly clean) to T - 1 (nearly noise)."""
        return self.alphas_cumprod.shape[0]

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

    def velocity(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``v = sqrt(a) * noise - sqrt(1 - a) * latents``, (B, C, h, w) float32.

        Shapes as in `add_noise`. Salimans & Ho, 2022, "Progressive Distillation", section 4,
        https://arxiv.org/abs/2202.00512.
        """
        signal, sigma = self._coefficients(latents, noise, timesteps)
        return signal * noise.float() - sigma * latents.float()

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the model should predict, (B, C, h, w) float32; shapes as in `add_noise`."""
        if self.prediction_type == "v_prediction":
            return self.velocity(latents, noise, timesteps)
        return noise.float()

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return the signal-to-noise ratio ``a / (1 - a)``: (B,) int64 -> (B,) float32."""
        return self.snr_table[timesteps]

    def _coefficients(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert latents.shape == noise.shape, (latents.shape, noise.shape)
        assert timesteps.shape == latents.shape[:1], (timesteps.shape, latents.shape)
        # One dimension per sample, or broadcasting would spread it over the width.
        shape = (-1, *[1] * (latents.dim() - 1))
        signal = self.sqrt_alphas_cumprod[timesteps].view(shape)
        sigma = self.sqrt_one_minus_alphas_cumprod[timesteps].view(shape)
        return signal, sigma

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let `.to()`, `.half()` and their kin change the device of the tables, never the dtype."""
        tables = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, table in tables.items():
            setattr(self, name, table.to(device=getattr(self, name).device))
        return self


def rescale_to_zero_snr(betas: Tensor) -> Tensor:
    """Shift a schedule so that its last timestep is pure noise.

    Keeps the first timestep: with ``s = sqrt(alphas_cumprod)``, the new values are
    ``(s - s[-1]) * s[0] / (s[0] - s[-1])``. Lin et al., 2024, "Common Diffusion Noise Schedules
    and Sample Steps are Flawed", algorithm 1, https://arxiv.org/abs/2305.08891.

    Args:
        betas: (T,) in (0, 1).

    Returns:
        (T,) float64; the last value is 1.
    """
    signal = torch.cumprod(1.0 - betas.double(), dim=0).sqrt()
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    alphas_cumprod = signal.square()
    alphas = torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
    return 1.0 - alphas


def _linear(start: float, end: float, num_timesteps: int) -> Tensor:
    return torch.linspace(start, end, num_timesteps, dtype=torch.float64)


def _scaled_linear(start: float, end: float, num_timesteps: int) -> Tensor:
    """Linear in the square root: the schedule that Stable Diffusion was published with."""
    return _linear(math.sqrt(start), math.sqrt(end), num_timesteps).square()


BETA_SCHEDULES: dict[str, Callable[[float, float, int], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
}


def _betas_from_config(config: Mapping[str, Any]) -> Tensor:
    trained = config.get("trained_betas")
    if trained is not None:
        return torch.tensor(trained, dtype=torch.float64)
    betas = BETA_SCHEDULES[config["beta_schedule"]]
    return betas(config["beta_start"], config["beta_end"], config["num_train_timesteps"])


def _config_problems(config: Mapping[str, Any], prediction_type: str) -> list[Problem]:
    messages = []
    if prediction_type not in PREDICTION_TYPES:
        messages.append(
            f"{CONFIG_FILE}: prediction_type is {prediction_type!r}; "
            f"it must be one of {', '.join(PREDICTION_TYPES)}. Set model.prediction_type."
        )
    if config.get("trained_betas") is None:
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
    if config.get("rescale_betas_zero_snr", False) and prediction_type == "epsilon":
        messages.append(
            f"{CONFIG_FILE}: rescale_betas_zero_snr is true, which leaves an epsilon model nothing "
            "to predict from at the last timestep; set model.prediction_type to v_prediction."
        )
    return [Problem(CONFIG_FILE, message) for message in messages]

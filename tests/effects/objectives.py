"""The objective of a tiny run, and what it draws and costs."""

from __future__ import annotations

import functools

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from loralab.diffusion.noise import sample_generator
from loralab.diffusion.objective import NoisyLatents, Objective
from loralab.diffusion.timesteps import WindowPlace
from tests.effects.runs import Tiny

TIMESTEPS = torch.tensor([0, 100, 500, 999])


@functools.cache
def objective(tiny: Tiny, *overrides: str) -> Objective:
    """Return the objective that a run would train with."""
    built: Objective = tiny.build(*overrides).job.module.objective
    return built


def weights(tiny: Tiny, *overrides: str) -> Tensor:
    """Return the weight of each of `TIMESTEPS`: its loss over its plain error."""
    found = objective(tiny, *overrides)
    latents, noise, prediction = torch.randn(3, 4, 4, 8, 8).unbind()
    sample = found.draw(latents, [], timesteps=TIMESTEPS, noise=noise)
    terms = found(prediction, latents, sample, weight=torch.full((4,), 0.25))
    return terms.per_sample / terms.error


def drawn(tiny: Tiny, *overrides: str, size: int = 200) -> NoisyLatents:
    """Return what is drawn for many samples of one window, whose latents are 0.5."""
    keys = [f"image#{number}" for number in range(size)]
    generators = [sample_generator(0, 0, key, "noise") for key in keys]
    latents, window = torch.full((size, 4, 8, 6), 0.5), WindowPlace(0, size, jitter_seed=1)
    return objective(tiny, *overrides).draw(latents, generators, window=window)


def snr() -> Tensor:
    """Return the signal-to-noise ratios of `TIMESTEPS` by diffusers' own table."""
    table = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    alphas = table.alphas_cumprod[TIMESTEPS]
    return alphas / (1 - alphas)

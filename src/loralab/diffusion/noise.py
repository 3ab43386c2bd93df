"""Noise as a function of position: which run, which epoch, which sample, what for.

Everything is drawn on the CPU, sample by sample, so a draw is the same on every device and does
not depend on the batch around it, the rank or the worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def sample_generator(seed: int, epoch: int, key: str, purpose: str) -> torch.Generator:
    """Return the generator that belongs to one sample in one epoch for one purpose.

    Args:
        seed: The run's seed.
        epoch: Epoch number from 0.
        key: Names the sample whatever its place in the data set: content digest and repeat.
        purpose: Keeps draws for different ends apart, e.g. ``"train"``.

    Returns:
        A fresh CPU generator; equal arguments give equal draws in every process.
    """
    return torch.Generator(device="cpu").manual_seed(position_seed(seed, epoch, key, purpose))


def position_seed(seed: int, epoch: int, key: str, purpose: str) -> int:
    """Return the seed that belongs to a position; arguments as in `sample_generator`."""
    text = f"{seed}:{epoch}:{key}:{purpose}"
    # torch's CPU generator (2.13) reads the low 32 bits only, so no more are taken: two visits out
    # of four billion share their noise, which harms nothing. hash() would differ between processes.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Draw standard normal noise, each sample from its own generator.

    Args:
        shape: (B, C, h, w).
        generators: B CPU generators; each is advanced by one sample.

    Returns:
        (B, C, h, w) float32 on the CPU.
    """
    num_samples, *sample_shape = shape
    assert len(generators) == num_samples, (len(generators), num_samples)
    noise = [
        torch.randn(sample_shape, generator=generator, dtype=torch.float32)
        for generator in generators
    ]
    return torch.stack(noise)


@dataclass(frozen=True)
class NoiseRecipe:
    """What the noise is made of: what is added to the latents and what the model has to find.

    Attributes:
        offset: Strength of a number added to each whole channel, so that a model learns brightness.
            Guttenberg, 2023, "Diffusion with Offset Noise",
            https://www.crosslabs.org/blog/diffusion-with-offset-noise.
        random_offset: Draw the strength from 0 to `offset` instead.
        adaptive_offset: Added to the strength, times the size of the channel's mean latent; may be
            negative, and the sum is at least 0.
        multires_iterations: Coarser and coarser layers of noise on top, at most so many.
            Whitaker, 2023, "Multi-Resolution Noise for Diffusion Model Training",
            https://wandb.ai/johnowhitaker/multires_noise.
        multires_discount: Weight of a layer as a multiple of the layer before.
        as_sd_scripts: Random strength, sizes of layers and the final scale are shared by the
            micro-batch, and the first layer is as fine as the noise itself
            (`library/custom_train_functions.py`, pyramid_noise_like). Otherwise a sample's noise
            does not depend on its neighbours.
    """

    offset: float = 0.0
    random_offset: bool = False
    adaptive_offset: float = 0.0
    multires_iterations: int = 0
    multires_discount: float = 0.3
    as_sd_scripts: bool = False

    def draw(self, latents: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the noise of a batch.

        Args:
            latents: (B, C, h, w); only their shape matters, but for `adaptive_offset`.
            generators: B CPU generators.

        Returns:
            (B, C, h, w) float32 on the device of `latents`.
        """
        noise = draw_noise(latents.shape, generators).to(latents.device)
        if self.offset:
            noise = noise + self._offset(latents, generators)
        if self.multires_iterations:
            noise = self._with_layers(noise, generators)
        return noise

    def _offset(self, latents: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the number that each channel is shifted by, (B, C, 1, 1)."""
        shift = draw_noise((*latents.shape[:2], 1, 1), generators)
        strength = torch.full((len(latents), 1, 1, 1), self.offset)
        if self.random_offset:
            strength = strength * _random_strengths(generators, shared=self.as_sd_scripts)
        strength = strength.to(latents.device)
        if self.adaptive_offset:
            size = latents.float().mean(dim=(2, 3), keepdim=True).abs()  # (B, C, 1, 1)
            strength = (strength + self.adaptive_offset * size).clamp(min=0.0)
        return strength * shift.to(latents.device)

    def _with_layers(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Add coarse layers and scale the sum back to the size of plain noise."""
        scales = [
            (2.0 + 2.0 * torch.rand(self.multires_iterations, generator=generator)).tolist()
            for generator in generators
        ]
        if self.as_sd_scripts:
            scales = [scales[0]] * len(scales)
        shape, discount = noise.shape[1:], self.multires_discount
        layers = [
            _coarse_layers(shape, own, generator, discount, first=0 if self.as_sd_scripts else 1)
            for own, generator in zip(scales, generators, strict=True)
        ]
        noise = noise + torch.stack(layers).to(noise.device)
        if self.as_sd_scripts:
            return noise / noise.std()
        return noise / noise.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()


@dataclass(frozen=True)
class InputPerturbation:
    """More noise on the model's input than it is asked to find, against exposure bias.

    Ning et al., 2023, "Input Perturbation Reduces Exposure Bias in Diffusion Models", algorithm 1,
    https://arxiv.org/abs/2301.11706; there gamma is 0.1.

    Attributes:
        gamma: Strength of the second noise; 0 is off.
        random_gamma: Draw the strength from 0 to `gamma` instead.
        as_sd_scripts: One random strength for the whole micro-batch.
    """

    gamma: float = 0.0
    random_gamma: bool = False
    as_sd_scripts: bool = False

    def __call__(self, noise: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the noise of the input: (B, C, h, w) plus gamma times a draw of the same shape."""
        if not self.gamma:
            return noise
        more = self.gamma * draw_noise(noise.shape, generators)
        if self.random_gamma:
            more = more * _random_strengths(generators, shared=self.as_sd_scripts)
        return noise + more.to(noise.device)


def _random_strengths(generators: Sequence[torch.Generator], *, shared: bool) -> Tensor:
    """Return one number in [0, 1) for each sample, (B, 1, 1, 1), or the first one's for all."""
    draws = torch.cat([torch.rand(1, generator=generator) for generator in generators])
    return (draws[:1].expand(len(draws)) if shared else draws).view(-1, 1, 1, 1)


def _coarse_layers(
    shape: Sequence[int],
    scales: Sequence[float],
    generator: torch.Generator,
    discount: float,
    *,
    first: int,
) -> Tensor:
    """Return the sum of one sample's layers, (C, h, w), the last one at most one cell high or wide.

    Layer i is ``scales[i] ** i`` times coarser than the noise and weighs ``discount ** i``.
    """
    channels, height, width = shape
    total = torch.zeros(1, channels, height, width)
    for number, scale in enumerate(scales, first):
        size = (max(1, int(height / scale**number)), max(1, int(width / scale**number)))
        layer = torch.randn((1, channels, *size), generator=generator)
        total += discount**number * functional.interpolate(layer, (height, width), mode="bilinear")
        if 1 in size:
            break
    return total[0]

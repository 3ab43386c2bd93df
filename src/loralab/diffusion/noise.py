"""Noise as a function of position: which run, which epoch, which sample, what for.

Everything is drawn on the CPU, sample by sample, so a draw is the same on every device and does
not depend on the batch around it, the rank or the worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


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
    text = f"{seed}:{epoch}:{key}:{purpose}"
    # torch's CPU generator (2.13) reads the low 32 bits only, so no more are taken: two visits out
    # of four billion share their noise, which harms nothing. hash() would differ between processes.
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return torch.Generator(device="cpu").manual_seed(number)


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

"""Elementwise losses, the thresholds of the robust ones, and means over masks; all in float32.

A new loss is one function here, one line in `LOSSES` and one member of the config enum.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def l2(difference: Tensor, _: Tensor) -> Tensor:
    """Return ``d ** 2``."""
    return difference.square()


def l1(difference: Tensor, _: Tensor) -> Tensor:
    """Return ``|d|``."""
    return difference.abs()


def huber(difference: Tensor, threshold: Tensor) -> Tensor:
    """Return ``2c * (sqrt(d^2 + c^2) - c)``: ``d^2`` well below c, ``2c * |d|`` well above.

    The pseudo-Huber loss as sd-scripts scales it (`library/train_util.py`, conditional_loss).
    """
    return 2.0 * threshold * _rounded_corner(difference, threshold)


def smooth_l1(difference: Tensor, threshold: Tensor) -> Tensor:
    """Return ``2 * (sqrt(d^2 + c^2) - c)``: ``d^2 / c`` well below c, ``2 * |d|`` well above.

    As sd-scripts scales it (`library/train_util.py`, conditional_loss).
    """
    return 2.0 * _rounded_corner(difference, threshold)


def log_cosh(difference: Tensor, _: Tensor) -> Tensor:
    """Return ``log(cosh(d))``: ``d^2 / 2`` near 0, ``|d| - log(2)`` far away; never overflows."""
    size = difference.abs()
    return size + functional.softplus(-2.0 * size) - math.log(2.0)


def _rounded_corner(difference: Tensor, threshold: Tensor) -> Tensor:
    """Return ``sqrt(d^2 + c^2) - c`` in a form that keeps the digits of a small d."""
    squared = difference.square()
    return squared / ((squared + threshold.square()).sqrt() + threshold)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2": l2,
    "l1": l1,
    "huber": huber,
    "smooth_l1": smooth_l1,
    "log_cosh": log_cosh,
}
"""(difference (B, C, h, w), threshold (B, 1, 1, 1)) -> loss (B, C, h, w)."""


def constant_threshold(c: float, snr: Tensor) -> Tensor:
    """Return c at every timestep."""
    return torch.full_like(snr, c)


def exponential_threshold(c: float, snr: Tensor) -> Tensor:
    """Return ``c ** (t / T)``: from 1 at the clean end to nearly c."""
    steps = torch.arange(len(snr), dtype=torch.float64) / len(snr)
    return torch.exp(math.log(c) * steps)


def snr_threshold(c: float, snr: Tensor) -> Tensor:
    """Return ``(1 - c) / (1 + sigma)^2 + c`` with ``sigma = 1 / sqrt(SNR)``; c at pure noise."""
    return (1.0 - c) * snr / (snr.sqrt() + 1.0).square() + c


HUBER_SCHEDULES: dict[str, Callable[[float, Tensor], Tensor]] = {
    "constant": constant_threshold,
    "exponential": exponential_threshold,
    "snr": snr_threshold,
}
"""(c, (T,) signal-to-noise ratios) -> (T,) thresholds; sd-scripts, get_huber_threshold_if_needed.

Khrapov et al., 2024, "Improving Diffusion Models's Data-Corruption Resistance using Scheduled
Pseudo-Huber Loss", https://arxiv.org/abs/2403.16728.
"""


def masked_mean(values: Tensor, mask: Tensor | None, *, by_area: bool = True) -> Tensor:
    """Return each sample's mean, where the mask is.

    Args:
        values: (B, C, h, w).
        mask: (B, 1, h, w) in [0, 1]; None means everything.
        by_area: Divide by the area of the mask, so that half a mask does not halve the mean; else
            by all cells.

    Returns:
        (B,); 0 for a mask of area 0.
    """
    if mask is None:
        return values.flatten(1).mean(dim=1)
    total = (values * mask).flatten(1).sum(dim=1)
    if not by_area:
        return total / values[0].numel()
    area = values.shape[1] * mask.flatten(1).sum(dim=1)
    return total / area.clamp(min=torch.finfo(torch.float32).tiny)

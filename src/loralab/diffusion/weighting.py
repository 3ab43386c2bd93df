"""How much each timestep counts in the loss, as a function of its signal-to-noise ratio.

A new weighting is one function here, one line in `WEIGHTINGS` and one member of the config enum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def constant(snr: Tensor, *, gamma: float, prediction_type: str) -> Tensor:
    """Weigh every timestep alike: (B,) ones. `gamma` and `prediction_type` change nothing."""
    return torch.ones_like(snr)


def min_snr(snr: Tensor, *, gamma: float, prediction_type: str) -> Tensor:
    """Cap the pull of the nearly clean timesteps.

    The weight is ``min(SNR, gamma)`` on the error of the clean latents. On the error of the noise
    that is ``min(SNR, gamma) / SNR``, on the error of the velocity ``min(SNR, gamma) / (SNR + 1)``.
    Hang et al., 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", section 3.4,
    https://arxiv.org/abs/2303.09556.

    Args:
        snr: (B,) signal-to-noise ratio; above 0 for ``"epsilon"``.
        gamma: The cap; the paper uses 5.
        prediction_type: What the error is measured on.

    Returns:
        (B,) weights in [0, 1].
    """
    capped = snr.clamp(max=gamma)
    if prediction_type == "v_prediction":
        return capped / (snr + 1.0)
    return capped / snr


WEIGHTINGS: dict[str, Callable[..., Tensor]] = {"constant": constant, "min_snr": min_snr}


def loss_weights(kind: str, snr: Tensor, *, gamma: float, prediction_type: str) -> Tensor:
    """Return the weight of each sample's error.

    Args:
        kind: A key of `WEIGHTINGS`.
        snr: (B,) float32 signal-to-noise ratio of each sample's timestep.
        gamma: The cap of ``"min_snr"``; above 0.
        prediction_type: ``"epsilon"`` or ``"v_prediction"``.

    Returns:
        (B,) float32.
    """
    assert kind in WEIGHTINGS, kind
    assert prediction_type in ("epsilon", "v_prediction"), prediction_type
    return WEIGHTINGS[kind](snr, gamma=gamma, prediction_type=prediction_type)

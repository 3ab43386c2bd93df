"""How much each timestep counts in the loss, as a function of its signal-to-noise ratio.

A weighting says how much the squared error of the *clean latents* counts. What that makes of the
error of the noise or of the velocity follows from `prediction_error`, so that a weighting pulls
alike whatever the model predicts, and stays finite where the signal-to-noise ratio is 0. Only
``"constant"`` counts the prediction's own error.

A new weighting is one function here, one line in `WEIGHTINGS` and one member of the config enum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from loralab.diffusion.targets import prediction_error


def min_snr(snr: Tensor, gamma: float) -> Tensor:
    """Return ``min(SNR, gamma)``: nearly clean timesteps do not pull harder than the cap.

    On the error of the noise ``min(SNR, gamma) / SNR``, of the velocity
    ``min(SNR, gamma) / (SNR + 1)``. Hang et al., 2023, "Efficient Diffusion Training via Min-SNR
    Weighting Strategy", section 3.4, https://arxiv.org/abs/2303.09556; there gamma is 5.
    """
    return snr.clamp(max=gamma)


def soft_min_snr(snr: Tensor, gamma: float) -> Tensor:
    """Return ``SNR * gamma / (SNR + gamma)``: min-SNR without its corner.

    Crowson et al., 2024, "Scalable High-Resolution Pixel-Space Image Synthesis with Hourglass
    Diffusion Transformers", https://arxiv.org/abs/2401.11605; there gamma is 4.
    """
    return snr * gamma / (snr + gamma)


def debiased(snr: Tensor, _: float) -> Tensor:
    """Return ``sqrt(SNR)``: on the error of the noise ``1 / sqrt(SNR)``, so that noisy steps count.

    Yu et al., 2023, "Debias the Training of Diffusion Models", https://arxiv.org/abs/2310.08442.
    """
    return snr.sqrt()


def p2(snr: Tensor, gamma: float) -> Tensor:
    """Return ``SNR / (1 + SNR) ** gamma``: on the error of the noise ``1 / (1 + SNR) ** gamma``.

    Choi et al., 2022, "Perception Prioritized Training of Diffusion Models", with k = 1,
    https://arxiv.org/abs/2204.00227; there gamma is 0.5 or 1.
    """
    return snr / (1.0 + snr).pow(gamma)


def scale_v_like_noise(snr: Tensor, _: float) -> Tensor:
    """Return ``SNR``: a velocity model weighs timesteps as a plain noise model does.

    On the error of the velocity ``SNR / (SNR + 1)``; sd-scripts
    (`library/custom_train_functions.py`), scale_v_pred_loss_like_noise_pred.
    """
    return snr


def v_like(snr: Tensor, scale: float) -> Tensor:
    """Return ``SNR + scale * (SNR + 1)``: a noise model's plain loss plus a share of a velocity's.

    On the error of the noise ``1 + scale * (SNR + 1) / SNR``; sd-scripts
    (`library/custom_train_functions.py`), v_pred_like_loss.
    """
    return snr + scale * (snr + 1.0)


WEIGHTINGS: dict[str, Callable[[Tensor, float], Tensor] | None] = {
    "constant": None,
    "min_snr": min_snr,
    "soft_min_snr": soft_min_snr,
    "debiased": debiased,
    "p2": p2,
    "scale_v_like_noise": scale_v_like_noise,
    "v_like": v_like,
}


def loss_weights(kind: str, snr: Tensor, *, prediction_type: str, strength: float = 0.0) -> Tensor:
    """Return the weight of the prediction's error at each timestep.

    Args:
        kind: A key of `WEIGHTINGS`.
        snr: (T,) float32 signal-to-noise ratios; above 0 for ``"epsilon"``.
        prediction_type: What the error is measured on.
        strength: Gamma of ``"min_snr"``, ``"soft_min_snr"`` and ``"p2"``, the share of
            ``"v_like"``; the others have no such number.

    Returns:
        (T,) float32, finite, not negative.
    """
    weighting = WEIGHTINGS[kind]
    if weighting is None:
        return torch.ones_like(snr)
    return weighting(snr, strength) / prediction_error(prediction_type, snr)


def sd_scripts_weights(
    kind: str, snr: Tensor, *, prediction_type: str, strength: float = 0.0
) -> Tensor:
    """Return the weights as sd-scripts calculates them (`library/custom_train_functions.py`).

    There the ratio is at most 1000, except by min-SNR, and a velocity model's debiased weight is
    ``1 / (SNR + 1)``. Arguments as in `loss_weights`; sd-scripts gives the ratios of the schedule
    as it was before rescaling to a zero terminal SNR.
    """
    if kind != "min_snr":
        snr = snr.clamp(max=1000.0)
    if kind == "debiased" and prediction_type == "v_prediction":
        return 1.0 / (snr + 1.0)
    return loss_weights(kind, snr, prediction_type=prediction_type, strength=strength)

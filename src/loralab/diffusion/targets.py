"""What a model is asked to predict, and how its error compares with that of the clean latents.

Every prediction is a mix of the clean latents ``x`` and the noise ``e``, of which the model sees
``signal * x + sigma * e``. A new one is a line in each of the two tables here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    # Ho et al., 2020, "DDPM", equation 14, https://arxiv.org/abs/2006.11239.
    "epsilon": lambda latents, noise, signal, sigma: noise,
    # Salimans & Ho, 2022, "Progressive Distillation", section 4, https://arxiv.org/abs/2202.00512.
    "v_prediction": lambda latents, noise, signal, sigma: signal * noise - sigma * latents,
    "sample": lambda latents, noise, signal, sigma: latents,
    # Liu et al., 2022, "Flow Straight and Fast", equation 1, https://arxiv.org/abs/2209.03003; the
    # direction of Esser et al., 2024, "Scaling Rectified Flow Transformers", section 2: to noise.
    "flow_prediction": lambda latents, noise, signal, sigma: noise - latents,
}
"""(latents, noise, signal, sigma), all broadcasting to (B, C, h, w) -> target (B, C, h, w)."""

PREDICTION_ERRORS: dict[str, Callable[[Tensor], Tensor]] = {
    "epsilon": lambda snr: snr,
    "v_prediction": lambda snr: snr + 1.0,
    "sample": torch.ones_like,
    "flow_prediction": lambda snr: (snr.sqrt() + 1.0).square(),  # 1 / sigma^2
}


def prediction_error(prediction_type: str, snr: Tensor) -> Tensor:
    """Return the squared error of the prediction that an error of the clean latents amounts to.

    A wrong prediction is a wrong guess of the clean latents, given what the model saw. An error of
    1 in the latents is one of ``signal / sigma`` in the noise: the less noise, the more.

    Args:
        prediction_type: A key of `TARGETS`.
        snr: (T,) signal-to-noise ratios.

    Returns:
        (T,) factors; 0 for ``"epsilon"`` at a ratio of 0, where pure noise says nothing of the
        latents.
    """
    return PREDICTION_ERRORS[prediction_type](snr)

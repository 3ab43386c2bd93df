"""The gradient noise scale by hand, and on gradients whose scale is known."""

from __future__ import annotations

import pytest
import torch

from loralab.training.callbacks.gradient_noise import GradientNoise, estimate_noise


def test_two_gradients_by_hand() -> None:
    # (3, 0) and (1, 0): squares 9 and 1, mean (2, 0). Of single images: variance 2, true square 3.
    found = estimate_noise(5.0, 4.0, batch=1, count=2)
    assert found.signal == pytest.approx(3.0)
    assert found.noise == pytest.approx(2.0)
    # The same gradients of batches of 4: a single image's variance is 4 times as large.
    assert estimate_noise(5.0, 4.0, batch=4, count=2).noise == pytest.approx(8.0)


def test_gradients_of_known_noise_give_their_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, size, batch = torch.full((50,), 0.2), 2.0, 4  # |truth|^2 is 2, the trace 50 * 4
    gradients = truth + size / batch**0.5 * torch.randn(20000, 50, generator=generator)
    squares, mean = gradients.square().sum(1).mean(), gradients.mean(0)
    found = estimate_noise(float(squares), float(mean.square().sum()), batch=batch, count=20000)
    assert found.noise / found.signal == pytest.approx(100.0, rel=0.05)


def test_a_window_of_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="window is 1"):
        GradientNoise(window=1)

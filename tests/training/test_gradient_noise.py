"""The gradient noise scale by hand, and on gradients whose scale is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

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


def test_gradients_that_overflowed_count_in_no_window() -> None:
    """Two steps of lengths 3 and 1 as worked out above, with an overflow between them."""
    weight = torch.nn.Parameter(torch.zeros(2))
    logged: dict[str, float] = {}
    logger = SimpleNamespace(log_metrics=lambda figures, step: logged.update(figures))
    trainer: Any = SimpleNamespace(
        world_size=1, global_step=2, loggers=[logger], precision_plugin=None
    )
    callback, module = GradientNoise(window=2), torch.nn.Module()
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for gradient in ((3.0, 0.0), (float("inf"), 0.0), (1.0, 0.0)):
        weight.grad = torch.tensor(gradient)
        callback.on_train_batch_start(trainer, module, {"loss_weight": torch.ones(1)}, 0)  # type: ignore[arg-type]
        callback.on_before_optimizer_step(trainer, module, optimizer)  # type: ignore[arg-type]
        callback.on_step_end(trainer, module)  # type: ignore[arg-type]
    assert logged["gradient/signal"] == pytest.approx(3.0)
    assert logged["gradient/noise"] == pytest.approx(2.0)

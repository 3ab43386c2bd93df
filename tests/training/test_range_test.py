"""The range test of rates: its rates, its suggestion, its curve."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from loralab.data.dataset import Item
from loralab.training.callbacks.range_test import RangeTest, rising_rates, suggest_rate

Make = Callable[..., Any]


def test_rates_rise_evenly_in_their_logarithm() -> None:
    assert rising_rates(1e-4, 1e-1, 4) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    rates = [10.0**-n for n in range(6, 0, -1)]
    losses = [1.0, 1.0, 0.98, 0.9, 0.5, 0.45, 3.0]  # falls most at the step of rate 1e-3
    assert suggest_rate(rates, losses[:7]) in (1e-4, 1e-3)


def test_a_quadratic_is_given_a_rate_below_the_one_that_diverges() -> None:
    """Gradient descent on x^2/2 diverges above a rate of 2; the test must stay below it."""
    rates, x, losses = rising_rates(1e-4, 10.0, 80), 1.0, [0.5]
    for rate in rates:
        x -= rate * x
        losses.append(x * x / 2)
    found = suggest_rate(rates, losses)
    assert found is not None
    assert 0.02 < found < 1.0


@pytest.mark.parametrize("losses", [[1.0, 1.1, 1.2, 1.3], [1.0, math.nan, math.nan, math.nan]])
def test_a_loss_that_never_falls_gives_none(losses: list[float]) -> None:
    assert suggest_rate([0.1, 0.2, 0.3], losses) is None


def test_the_same_weights_have_the_same_loss_and_a_hopeless_run_ends(
    make_module: Make, make_data: Make, make_trainer: Make, items: list[Item]
) -> None:
    still, wild = RangeTest(seed=0, strata=2), RangeTest(seed=0, strata=2)
    data = make_data(items, items[:2])
    make_trainer(max_steps=3, callbacks=[still]).fit(make_module(rate=0.0), data)
    assert len(still.losses) == 4
    assert len(set(still.losses)) == 1, "other batches, the same images and noise"
    module = make_module(rate=1e30, optimizer=torch.optim.AdamW)
    make_trainer(max_steps=9, callbacks=[wild]).fit(module, make_data(items, items[:2]))
    assert len(wild.losses) < 10
    assert not math.isfinite(wild.losses[-1])

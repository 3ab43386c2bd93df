"""Learning-rate multipliers against numbers, closed forms and two other implementations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler as get_diffusers_scheduler
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler as get_transformers_scheduler

from loralab.training.lr_schedules import SHAPES, make_lr_multiplier

# Total 100 steps, warm-up 10: closed forms to six digits, e.g. cosine at 40 with p = 30 / 90 is
# (1 + cos(pi / 3)) / 2 = 0.75.
STEPS = [0, 5, 10, 40, 55, 70, 99]
LINEAR = [0, 0.5, 1, 0.666667, 0.5, 0.333333, 0.011111]
COSINE = [0, 0.5, 1, 0.75, 0.5, 0.25, 0.000305]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("linear", LINEAR), ("cosine", COSINE), ("constant", [0, 0.5, 1, 1, 1, 1, 1])],
)
def test_multipliers_of_one_hundred_steps_with_ten_of_warmup(
    kind: str, expected: list[float]
) -> None:
    multiplier = make_lr_multiplier(kind, total_steps=100, warmup_steps=10)
    assert [multiplier(step) for step in STEPS] == pytest.approx(expected, abs=5e-7)


@pytest.mark.parity
@pytest.mark.parametrize("get_scheduler", [get_diffusers_scheduler, get_transformers_scheduler])
@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
def test_learning_rates_agree_with_diffusers_and_transformers(
    get_scheduler: Callable[..., Any], kind: str, warmup_steps: int
) -> None:
    theirs_by_kind = {"constant": "constant_with_warmup"}
    rates: list[list[float]] = []
    for ours in (True, False):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        if ours:
            multiplier = make_lr_multiplier(kind, total_steps=40, warmup_steps=warmup_steps)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, multiplier)
        else:
            scheduler = get_scheduler(
                theirs_by_kind.get(kind, kind),
                optimizer,
                num_warmup_steps=warmup_steps,
                num_training_steps=40,
            )
        rates.append([])
        for _ in range(40):
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    assert rates[0] == pytest.approx(rates[1], rel=1e-12, abs=1e-15)


def test_start_factor_is_the_multiplier_of_the_first_update() -> None:
    multiplier = make_lr_multiplier(
        "linear", total_steps=100, warmup_steps=10, warmup_start_factor=0.2
    )
    # 0.2 + 0.8 * s / 10
    assert [multiplier(step) for step in (0, 5, 10)] == pytest.approx([0.2, 0.6, 1.0])
    assert multiplier(55) == pytest.approx(0.5)


def test_start_factor_without_warmup_changes_nothing() -> None:
    with_factor = make_lr_multiplier("cosine", total_steps=9, warmup_start_factor=0.5)
    without = make_lr_multiplier("cosine", total_steps=9)
    assert [with_factor(step) for step in range(10)] == [without(step) for step in range(10)]


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_falling_schedules_reach_zero_after_the_last_update_and_stay_there(kind: str) -> None:
    multiplier = make_lr_multiplier(kind, total_steps=20, warmup_steps=2)
    assert multiplier(19) > 0
    assert [multiplier(step) for step in (20, 21, 35)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", SHAPES)
@given(data=st.data())
def test_every_schedule_stays_between_zero_and_one(kind: str, data: st.DataObject) -> None:
    total_steps = data.draw(st.integers(1, 10_000))
    warmup_steps = data.draw(st.integers(0, total_steps - 1))
    start = data.draw(st.floats(0, 1))
    step = data.draw(st.integers(0, total_steps + 10))
    multiplier = make_lr_multiplier(
        kind, total_steps=total_steps, warmup_steps=warmup_steps, warmup_start_factor=start
    )
    assert math.isfinite(multiplier(step))
    assert 0.0 <= multiplier(step) <= 1.0


@pytest.mark.parametrize("kind", SHAPES)
def test_warmup_ends_at_the_peak(kind: str) -> None:
    assert make_lr_multiplier(kind, total_steps=50, warmup_steps=13)(13) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("cosin", {"total_steps": 10}),
        ("linear", {"total_steps": 0}),
        ("linear", {"total_steps": 10, "warmup_steps": 10}),
        ("linear", {"total_steps": 10, "warmup_steps": -1}),
        ("linear", {"total_steps": 10, "warmup_steps": 2, "warmup_start_factor": 1.5}),
    ],
)
def test_impossible_schedule_is_our_mistake(kind: str, options: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        make_lr_multiplier(kind, **options)


def test_option_of_another_kind_stops_when_the_schedule_is_made() -> None:
    with pytest.raises(TypeError, match="power"):
        make_lr_multiplier("linear", total_steps=10, power=2.0)

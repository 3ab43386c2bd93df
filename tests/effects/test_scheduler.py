"""The rate of every step, taken where the optimizer takes it."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as L
import pytest

from tests.effects.registry import effect
from tests.effects.runs import Tiny

LR = 0.01
FOUR = "trainer.max_steps=4"


class Rates(L.Callback):
    """Notes the UNet's rate just before each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any
    ) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def multiples(tiny: Tiny, *overrides: str) -> list[float]:
    """Return the rate of each of four steps as a multiple of the peak."""
    built, rates = tiny.build(FOUR, *overrides), Rates()
    built.job.trainer.callbacks.append(rates)  # type: ignore[attr-defined]
    built.fit()
    return [rate / LR for rate in rates.seen]


@effect("scheduler.kind")
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4]),
    ],
)
def test_rates_follow_the_curve(tiny: Tiny, kind: str, expected: list[float]) -> None:
    assert multiples(tiny, f"scheduler.kind={kind}") == pytest.approx(expected)


@effect("scheduler.warmup_steps", "scheduler.warmup_fraction")
@pytest.mark.parametrize("given", ["warmup_steps=2", "warmup_fraction=0.5"])
def test_warm_up_rises_from_zero_in_a_straight_line(tiny: Tiny, given: str) -> None:
    assert multiples(tiny, f"scheduler.{given}") == pytest.approx([0, 0.5, 1, 1])


def test_the_logged_rate_is_the_one_that_was_used(tiny: Tiny) -> None:
    run = tiny.run(FOUR, "scheduler.kind=linear", "logger=csv")
    logged = run.column("learning_rate/unet")
    assert logged == pytest.approx([LR, 0.75 * LR, 0.5 * LR, 0.25 * LR])

"""The schedule as a line of blocks."""

from __future__ import annotations

import pytest

from loralab.app.schedule import sparkline, spread
from loralab.training.lr_schedules import make_lr_multiplier


def test_sparkline_goes_from_the_lowest_block_to_the_full_one() -> None:
    assert sparkline([n / 7 for n in range(8)]) == "▁▂▃▄▅▆▇█"
    assert sparkline([0.0, 5.0, 10.0]) == "▁▅█"


def test_sparkline_of_rates_that_are_all_zero_is_flat() -> None:
    assert sparkline([0.0, 0.0]) == "▁▁"


def test_warm_up_and_fall_are_seen() -> None:
    multiplier = make_lr_multiplier("linear", total_steps=16, warmup_steps=8)
    assert sparkline([multiplier(step) for step in range(16)]) == "▁▂▃▄▅▅▆▇█▇▆▅▅▄▃▂"


@pytest.mark.parametrize(
    ("total", "most", "expected"),
    [(1, 40, [0]), (3, 40, [0, 1, 2]), (1001, 3, [0, 500, 1000])],
)
def test_points_hold_the_first_step_and_the_last(
    total: int, most: int, expected: list[int]
) -> None:
    assert spread(total, most) == expected

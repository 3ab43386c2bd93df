"""What is concluded from measurements, on numbers small enough for a sheet of paper."""

from __future__ import annotations

import math

import pytest
import torch

from loralab.training.validation import (
    Measurement,
    best,
    describe_validation,
    estimate,
    figures,
    gain,
    gap,
    overfits,
    overfitting_begins,
    validations_in_vain,
)

BASE = [5.0, 7.0, 9.0, 11.0]


def at(step: int, held_out: list[float], probe: list[float] | None = None) -> Measurement:
    """Return a measurement of one stratum."""
    column = torch.tensor(held_out)[:, None]
    return Measurement(step, column, None if probe is None else torch.tensor(probe)[:, None])


def series(*losses: float, probe: tuple[float, ...] | None = None) -> list[Measurement]:
    """Return measurements of four images around each loss.

    From one measurement to the next two images gain 0.1 over the other two, so the difference of
    measurements m and n has the standard error |m - n| * sqrt(4/3 * 0.01) / 2 = |m - n| * 0.0577.
    """
    entries = []
    for number, loss in enumerate(losses):
        wobble = 0.1 * number
        images = [loss - 2 + wobble, loss - wobble, loss + 2 + wobble, loss - wobble]
        trained = None if probe is None else [probe[number] + d for d in (-1.0, 0.0, 1.0)]
        entries.append(at(number + 1, images, trained))
    return entries


START = at(0, [6.0, 8.0, 10.0, 8.0])  # the base of a series: loss 8


def test_estimate_is_the_mean_and_its_standard_error() -> None:
    # Deviations -3, -1, 1, 3: variance 20 / 3, standard error sqrt(20 / 3) / 2.
    found = estimate(torch.tensor(BASE))
    assert found.mean == 8.0
    assert found.stderr == pytest.approx(math.sqrt(20 / 3) / 2)
    assert math.isnan(estimate(torch.tensor([1.0])).stderr)


def test_gain_is_paired_by_image() -> None:
    # Gains 1, 2, 1, 2: mean 1.5, deviations of 0.5, variance 1 / 3, standard error sqrt(1 / 12).
    after = at(1, [4.0, 5.0, 8.0, 9.0])
    found = gain(at(0, BASE).held_out, after.held_out)
    assert found.mean == 1.5
    assert found.stderr == pytest.approx(math.sqrt(1 / 12))


def test_gap_is_the_difference_of_two_gains_whatever_the_sets_are_like() -> None:
    before = at(0, BASE, [100.0, 102.0])
    after = at(1, [4.0, 5.0, 8.0, 9.0], [96.0, 97.0])  # gains 4 and 5: 4.5, standard error 0.5
    found = gap(before, after)
    assert found.mean == 3.0
    assert found.stderr == pytest.approx(math.sqrt(0.25 + 1 / 12))


def test_best_is_the_lowest_and_the_earliest_of_equals() -> None:
    history = series(3.0, 2.0, 2.5, 2.0)
    assert best(history).step == 2
    assert best([at(1, [math.nan] * 4), *history]) is history[1]


@pytest.mark.parametrize(
    ("losses", "in_vain"),
    [
        ((7.0,), 0),
        ((8.5,), 1),  # worse than the base, which is 8
        ((7.0, 7.1, 7.2), 2),
        ((7.0, 7.1, 6.9), 0),
        ((7.0, 6.5, 6.6, 6.55, 6.45), 0),  # by 0.05, and any gain counts
    ],
)
def test_validations_without_any_gain_are_counted(losses: tuple[float, ...], in_vain: int) -> None:
    assert validations_in_vain(START, series(*losses), min_improvement=0.0) == in_vain


def test_gain_within_the_standard_error_is_none() -> None:
    history = series(7.0, 6.5, 6.45)  # 0.05 is 0.87 standard errors
    assert validations_in_vain(START, history, min_improvement=0.0) == 0
    assert validations_in_vain(START, history, min_improvement=0.8) == 0
    assert validations_in_vain(START, history, min_improvement=0.9) == 1


def test_gains_are_counted_from_the_last_improvement_so_small_ones_add_up() -> None:
    history = series(7.0, 6.96, 6.92, 6.8)
    counts = [
        validations_in_vain(START, history[:end], min_improvement=1.0) for end in (1, 2, 3, 4)
    ]
    assert counts == [0, 1, 2, 0]  # 0.04 of 0.058, 0.08 of 0.115, 0.2 of 0.173


def test_overfitting_is_a_rise_on_held_out_images_that_trained_ones_do_not_share() -> None:
    falling = (3.0, 2.8, 2.6, 2.4)
    assert overfits(series(3.0, 2.5, 2.8, 3.2, probe=falling))
    assert not overfits(series(3.0, 2.5, 2.4, 2.3, probe=falling)), "both gain"
    assert not overfits(series(3.0, 2.5, 2.8, 3.2, probe=(3.0, 2.5, 2.8, 3.2))), "both lose"
    assert not overfits(series(3.0, 2.5, 2.6, 2.7, probe=falling)), "within two errors"
    assert not overfits(series(3.0, probe=(3.0,)))


def test_alarm_rings_once_until_there_is_a_new_best() -> None:
    losses = (3.0, 2.5, 2.8, 2.52, 2.9, 2.0, 2.1, 2.5)
    history = series(*losses, probe=tuple(3.0 - 0.1 * n for n in range(8)))
    states = [overfits(history[:end]) for end in range(1, 9)]
    alarms = [overfitting_begins(history[:end]) for end in range(1, 9)]
    assert states == [False, False, True, False, True, False, False, True]
    assert alarms == [False, False, True, False, False, False, False, True]


def test_figures_name_each_band_of_noise() -> None:
    errors = torch.tensor([[1.0, 2.0, 3.0, 5.0], [3.0, 4.0, 5.0, 9.0]])
    entry = Measurement(40, errors, None)
    found = figures(
        Measurement(0, errors + 1, None),
        [entry],
        timesteps=torch.tensor([125, 375, 625, 875]),
        num_timesteps=1000,
    )
    assert found["val/loss"] == 4.0
    assert found["val/loss_stderr"] == 1.25  # images 2.75 and 5.25
    assert found["val/improvement"] == 1.0
    assert found["val/improvement_stderr"] == 0.0
    assert found["val/loss_low_noise"] == 2.0
    assert found["val/loss_middle_noise"] == 3.5
    assert found["val/loss_high_noise"] == 7.0
    assert found["val/loss_at_timestep/125"] == 2.0
    assert (found["val/best_loss"], found["val/best_step"]) == (4.0, 40.0)
    assert describe_validation(found) == "4.0000 ± 1.2500, base 5.0000: 1.0000 ± 0.0000 lower (20%)"

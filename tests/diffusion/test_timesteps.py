"""Timesteps: how often which come, how a window spreads them, and the middles of strata."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from loralab.diffusion.noise import position_seed, sample_generator
from loralab.diffusion.timesteps import (
    DENSITIES,
    SPREADS,
    TimestepSampler,
    WindowPlace,
    fixed_strata,
)


def generators(num_samples: int) -> list[torch.Generator]:
    return [sample_generator(0, 0, f"image#{number}", "train") for number in range(num_samples)]


def window(size: int, number: int = 0, first: int = 0) -> WindowPlace:
    return WindowPlace(first, size, position_seed(0, 0, f"window {number}", "timesteps"))


def many(num_windows: int, size: int, **options: Any) -> Tensor:
    """Return the timesteps of many windows, (num_windows, size)."""
    sampler = TimestepSampler(**options)
    rows = []
    for number in range(num_windows):
        keys = [f"image#{number * size + place}" for place in range(size)]
        own = [sample_generator(0, 0, key, "train") for key in keys]
        rows.append(sampler(own, window(size, number)))
    return torch.stack(rows)


def test_uniform_timesteps_reach_low_but_never_high() -> None:
    timesteps = TimestepSampler(low=10, high=20)(generators(300))
    assert timesteps.shape == (300,)
    assert timesteps.dtype == torch.int64
    assert set(timesteps.tolist()) == set(range(10, 20))


def test_independent_uniform_timesteps_are_those_of_randint() -> None:
    expected = [torch.randint(0, 1000, (1,), generator=g).item() for g in generators(20)]
    assert TimestepSampler()(generators(20)).tolist() == expected


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("spread", SPREADS)
def test_timesteps_stay_in_their_range(density: str, spread: str) -> None:
    options = {"density": density, "spread": spread, "low": 7, "high": 11, "std": 40.0}
    timesteps = many(50, 4, **options)
    assert set(timesteps.flatten().tolist()) <= {7, 8, 9, 10}
    assert timesteps.dtype == torch.int64


@pytest.mark.parametrize("position", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("density", DENSITIES)
def test_the_ends_of_the_positions_give_places_in_the_range(density: str, position: float) -> None:
    place = DENSITIES[density](torch.tensor([position]), 0.0, 5.0)
    assert 0 <= place.item() <= 1


def uniform_share(place: float) -> float:
    return place


def cubic_share(place: float) -> float:
    """Return P(1 - u^3 < place)."""
    return 1 - (1 - place) ** (1 / 3)


def logit_normal_share(place: float) -> float:
    """Return P(sigmoid(0.5 + 0.8 z) < place), by the error function."""
    if place in (0, 1):
        return place
    z = (math.log(place / (1 - place)) - 0.5) / 0.8
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


MARGINALS: dict[str, tuple[Callable[[float], float], dict[str, float]]] = {
    "uniform": (uniform_share, {}),
    "cubic": (cubic_share, {}),
    "logit_normal": (logit_normal_share, {"mean": 0.5, "std": 0.8}),
}


@pytest.mark.parametrize("density", MARGINALS)
@pytest.mark.parametrize("spread", ["independent", "stratified", "antithetic"])
def test_however_timesteps_are_spread_each_comes_as_often(density: str, spread: str) -> None:
    # Chi-square over up to 20 bands, about equally likely, for the samples at one place of their
    # windows: those are independent. 43.8 is exceeded once in 1000 with 19 degrees of freedom.
    share, options = MARGINALS[density]
    timesteps = many(4000, 5, density=density, spread=spread, low=100, high=900, **options)
    shares = torch.tensor([share(step / 800) for step in range(801)], dtype=torch.float64)
    edges = torch.searchsorted(shares, torch.arange(1, 20) / 20).unique()
    edges = edges[edges < 800]  # of a cubic density one timestep alone has a tenth
    expected = 4000 * torch.cat([shares[:1], shares[edges], shares[-1:]]).diff()
    for place in range(5):
        bands = torch.bucketize(timesteps[:, place] - 100, edges, right=True)
        counts = torch.bincount(bands, minlength=len(edges) + 1)
        chi_square = ((counts - expected).square() / expected).sum().item()
        assert chi_square < 43.8, (place, counts.tolist())


def test_stratified_timesteps_hit_every_stratum_of_a_window_once() -> None:
    timesteps = many(200, 10, spread="stratified")
    assert (timesteps.sort(dim=1).values // 100 == torch.arange(10)).all()
    assert len({tuple(row.tolist()) for row in timesteps // 100}) > 150, "in ever another order"


def test_antithetic_timesteps_mirror_in_pairs() -> None:
    timesteps = many(100, 5, spread="antithetic")
    assert set((timesteps[:, 0] + timesteps[:, 1]).tolist()) <= {998, 999, 1000}
    assert set((timesteps[:, 2] + timesteps[:, 3]).tolist()) <= {998, 999, 1000}
    assert len(set((timesteps[:, 3] + timesteps[:, 4]).tolist())) > 50, "no pairs across pairs"


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("split", [[6], [2, 2, 2], [1, 5], [4, 2]], ids=str)
def test_any_split_of_a_window_draws_the_same_timesteps(spread: str, split: list[int]) -> None:
    sampler, found = TimestepSampler(spread=spread), []
    for number, size in enumerate(split):
        first = sum(split[:number])
        own = generators(6)[first : first + size]
        found += sampler(own, window(6, first=first)).tolist()
    assert found == sampler(generators(6), window(6)).tolist()


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("spread", SPREADS)
def test_the_draws_that_follow_are_the_same_whatever_the_timesteps(
    density: str, spread: str
) -> None:
    def next_draws(**options: Any) -> Tensor:
        own = generators(3)
        TimestepSampler(**options)(own, window(3))
        return torch.stack([torch.randn(32, generator=generator) for generator in own])

    assert torch.equal(next_draws(density=density, spread=spread), next_draws())


def test_spreading_makes_a_mean_over_the_window_steadier() -> None:
    # For the mean of t itself, independent draws have the variance 1000^2 / 12 / n. One draw in
    # each n-th of the range makes that 1000^2 / 12 / n^3; mirrored pairs cancel altogether.
    variance = {
        spread: many(500, 8, spread=spread).double().mean(dim=1).var().item() for spread in SPREADS
    }
    assert variance["independent"] == pytest.approx(1000**2 / 12 / 8, rel=0.2)
    assert variance["stratified"] == pytest.approx(1000**2 / 12 / 8**3, rel=0.3)
    assert variance["antithetic"] < 1


def test_a_samples_timestep_does_not_depend_on_its_batch() -> None:
    together = TimestepSampler()(generators(5))
    alone = TimestepSampler()(generators(5)[3:4])
    assert together[3] == alone[0]


def test_a_filler_behind_the_end_of_its_window_gets_a_timestep_all_the_same() -> None:
    for spread in ("stratified", "antithetic"):
        timesteps = TimestepSampler(spread=spread)(generators(3), window(4, first=3))
        assert timesteps.shape == (3,)


def test_a_spread_without_its_window_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="place in the window"):
        TimestepSampler(spread="stratified")(generators(1))


def test_empty_range_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        TimestepSampler(low=5, high=5)


@pytest.mark.parametrize(
    ("num_strata", "num_timesteps", "expected"),
    [(1, 1000, [500]), (4, 1000, [125, 375, 625, 875]), (3, 10, [1, 5, 8]), (3, 3, [0, 1, 2])],
)
def test_fixed_strata_are_the_middles(
    num_strata: int, num_timesteps: int, expected: list[int]
) -> None:
    strata = fixed_strata(num_strata, num_timesteps=num_timesteps)
    assert strata.tolist() == expected
    assert strata.dtype == torch.int64


def test_more_strata_than_timesteps_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        fixed_strata(11, num_timesteps=10)

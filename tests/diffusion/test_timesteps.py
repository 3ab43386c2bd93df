"""Timesteps: range, coverage, independence of the batch, and the middles of strata."""

from __future__ import annotations

import pytest
import torch

from loralab.diffusion.noise import sample_generator
from loralab.diffusion.timesteps import fixed_strata, uniform_timesteps


def generators(num_samples: int) -> list[torch.Generator]:
    return [sample_generator(0, 0, f"image#{number}", "train") for number in range(num_samples)]


def test_uniform_timesteps_reach_low_but_never_high() -> None:
    timesteps = uniform_timesteps(generators(300), low=10, high=20)
    assert timesteps.shape == (300,)
    assert timesteps.dtype == torch.int64
    assert set(timesteps.tolist()) == set(range(10, 20))


def test_uniform_timesteps_fill_the_schedule_evenly() -> None:
    counts = torch.bincount(uniform_timesteps(generators(4000), low=0, high=1000) // 250)
    # 1000 a quarter with standard deviation 27.4; five of them.
    assert counts.tolist() == pytest.approx([1000] * 4, abs=137)


def test_a_samples_timestep_does_not_depend_on_its_batch() -> None:
    together = uniform_timesteps(generators(5), low=0, high=1000)
    alone = uniform_timesteps(generators(5)[3:4], low=0, high=1000)
    assert together[3] == alone[0]


def test_empty_range_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        uniform_timesteps(generators(1), low=5, high=5)


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

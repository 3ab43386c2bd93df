"""Noise depends on the sample alone: not on the batch, the order or the process."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from loralab.diffusion.noise import draw_noise, sample_generator

PRINT_DIGEST = """
import hashlib
from loralab.diffusion.noise import draw_noise, sample_generator
noise = draw_noise((1, 4, 8, 8), [sample_generator(7, 3, "abc#0", "train")])
print(hashlib.sha256(noise.numpy().tobytes()).hexdigest())
"""


def noise_of(*keys: str, epoch: int = 0) -> Tensor:
    generators = [sample_generator(1, epoch, key, "train") for key in keys]
    return draw_noise((len(keys), 4, 8, 6), generators)


def test_a_samples_noise_does_not_depend_on_batch_size_or_neighbours() -> None:
    alone = noise_of("cat#0")
    among = noise_of("dog#0", "owl#0", "cat#0", "fox#1")
    assert torch.equal(among[2:3], alone)


def test_samples_of_one_batch_differ() -> None:
    noise = noise_of("cat#0", "cat#1", "dog#0")
    assert len({sample.sum().item() for sample in noise}) == 3


@pytest.mark.parametrize(
    "other",
    [(2, 3, "abc#0", "train"), (1, 4, "abc#0", "train"), (1, 3, "abc#1", "train"),
     (1, 3, "abc#0", "posterior")],
    ids=["seed", "epoch", "key", "purpose"],
)  # fmt: skip
def test_each_part_of_the_position_changes_the_draw(other: tuple[int, int, str, str]) -> None:
    here = torch.rand(4, generator=sample_generator(1, 3, "abc#0", "train"))
    assert not torch.equal(here, torch.rand(4, generator=sample_generator(*other)))


def test_generator_is_seeded_from_sha256_of_the_position() -> None:
    digest = hashlib.sha256(b"1:3:abc#0:train").digest()
    generator = sample_generator(1, 3, "abc#0", "train")
    assert generator.initial_seed() == int.from_bytes(digest[:4], "big")
    assert generator.device.type == "cpu"


def test_draws_are_identical_in_another_process() -> None:
    noise = draw_noise((1, 4, 8, 8), [sample_generator(7, 3, "abc#0", "train")])
    here = hashlib.sha256(noise.numpy().tobytes()).hexdigest()
    there = subprocess.run(
        [sys.executable, "-c", PRINT_DIGEST], capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here


def test_global_seed_neither_matters_nor_moves() -> None:
    torch.manual_seed(1)
    first = noise_of("cat#0")
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(noise_of("cat#0"), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_standard_normal_float32() -> None:
    noise = draw_noise((2, 4, 64, 64), [sample_generator(0, 0, key, "train") for key in "ab"])
    assert noise.dtype == torch.float32
    # 32768 draws: mean and standard deviation within five standard errors.
    assert abs(noise.mean().item()) < 5 / 32768**0.5
    assert abs(noise.std().item() - 1) < 5 / (2 * 32768) ** 0.5


def test_one_generator_per_sample_is_required() -> None:
    with pytest.raises(AssertionError):
        draw_noise((2, 4, 8, 8), [sample_generator(0, 0, "a", "train")])

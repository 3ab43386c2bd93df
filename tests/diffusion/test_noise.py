"""Noise depends on the sample alone: not on the batch, the order or the process."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from loralab.diffusion.noise import (
    InputPerturbation,
    NoiseRecipe,
    draw_noise,
    sample_generator,
)

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


KEYS = [f"image#{number}" for number in range(6)]


def generators(keys: list[str]) -> list[torch.Generator]:
    return [sample_generator(0, 0, key, "noise") for key in keys]


def made(keys: list[str] = KEYS, latents: Tensor | None = None, **options: Any) -> Tensor:
    """Return the noise of a recipe; latents are 0 unless given."""
    if latents is None:
        latents = torch.zeros(len(keys), 4, 16, 12)
    return NoiseRecipe(**options).draw(latents, generators(keys))


def many(**options: Any) -> Tensor:
    """Return the noise of 400 samples, (400, 4, 16, 12)."""
    return made([f"image#{number}" for number in range(400)], **options)


def test_a_recipe_without_options_is_plain_noise() -> None:
    assert torch.equal(made(), draw_noise((6, 4, 16, 12), generators(KEYS)))


def test_offset_shifts_each_channel_as_a_whole() -> None:
    shift = made(offset=0.5) - made()
    torch.testing.assert_close(shift, shift[..., :1, :1].expand_as(shift), rtol=0, atol=1e-6)
    assert len(shift[..., 0, 0].unique()) == 24


def test_offset_adds_its_square_to_the_variance_of_channel_means() -> None:
    # A mean of 192 draws has the variance 1 / 192, the shift 0.5^2: 1600 of them, so within 18 %
    # with five standard errors.
    means = many(offset=0.5).mean(dim=(2, 3))
    assert means.var().item() == pytest.approx(1 / 192 + 0.25, rel=0.18)
    assert means.mean().item() == pytest.approx(0, abs=5 * (0.2552 / 1600) ** 0.5)


def test_random_strength_is_drawn_for_each_sample() -> None:
    # g is the same draw with and without: the ratio of the shifts is the random strength.
    fixed, drawn = many(offset=0.5) - many(), many(offset=0.5, random_offset=True) - many()
    strength = (drawn / fixed)[:, :, 0, 0].median(dim=1).values
    assert 0 <= strength.min() < 0.05
    assert 0.95 < strength.max() <= 1
    assert strength.mean().item() == pytest.approx(0.5, abs=5 * (1 / 12 / 400) ** 0.5)


def test_adaptive_strength_follows_the_mean_of_the_channel() -> None:
    # Strength 0.5 + 0.25 * |mean|, where the means are 0, 2, -4 and 8; at -0.25 it ends at 0.
    means = torch.tensor([0.0, 2.0, -4.0, 8.0]).view(1, 4, 1, 1)
    latents = means.expand(6, 4, 16, 12) + torch.tensor([-1.0, 1.0] * 6)
    fixed = made(offset=0.5) - made()
    for adaptive, factors in ((0.25, [1, 2, 3, 5]), (-0.25, [1, 0, 0, 0])):
        found = made(latents=latents, offset=0.5, adaptive_offset=adaptive) - made()
        expected = fixed * torch.tensor(factors).view(1, 4, 1, 1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def neighbours(noise: Tensor) -> float:
    """Return the correlation of cells that lie side by side."""
    return float((noise[..., 1:] * noise[..., :-1]).mean() / noise.square().mean())


def test_coarse_layers_make_neighbours_alike_and_keep_the_size() -> None:
    plain, layered = many(), many(multires_iterations=6, multires_discount=0.8)
    assert abs(neighbours(plain)) < 0.02
    assert neighbours(layered) > 0.2
    squares = layered.square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(squares, torch.ones(400), rtol=1e-5, atol=0)
    assert abs(layered.mean().item()) < 0.05


def test_more_layers_and_less_discount_make_coarser_noise() -> None:
    strength = [
        neighbours(many(multires_iterations=iterations, multires_discount=discount))
        for iterations, discount in ((1, 0.3), (1, 0.8), (3, 0.8))
    ]
    assert strength == sorted(strength)
    assert strength[2] > strength[0] + 0.1


def test_layers_without_weight_leave_the_noise_but_for_its_size() -> None:
    ratio = made(multires_iterations=3, multires_discount=0.0) / made()
    torch.testing.assert_close(ratio, ratio[:, :1, :1, :1].expand_as(ratio), rtol=1e-5, atol=0)


def test_layers_end_at_a_single_cell() -> None:
    latents = torch.zeros(6, 4, 2, 3)
    few, many_more = (made(latents=latents, multires_iterations=n) for n in (2, 50))
    assert torch.isfinite(many_more).all()
    assert few.shape == many_more.shape


@pytest.mark.parametrize(
    "options",
    [
        {"offset": 0.3},
        {"offset": 0.3, "random_offset": True},
        {"offset": 0.3, "adaptive_offset": 0.2},
        {"multires_iterations": 5},
        {"offset": 0.3, "random_offset": True, "multires_iterations": 5},
    ],
    ids=str,
)
def test_no_recipe_lets_samples_influence_one_another(options: dict[str, Any]) -> None:
    latents = torch.randn(6, 4, 16, 12, generator=torch.Generator().manual_seed(2))
    together = made(latents=latents, **options)
    alone = made(KEYS[3:4], latents[3:4], **options)
    assert torch.equal(together[3:4], alone)
    assert together.dtype == torch.float32


def test_as_sd_scripts_samples_share_strength_and_scale() -> None:
    theirs = {"as_sd_scripts": True, "offset": 0.5, "random_offset": True}
    ratio = (made(**theirs) - made()) / (made(offset=0.5) - made())
    torch.testing.assert_close(ratio, ratio[:1, :1, :1, :1].expand_as(ratio), rtol=1e-3, atol=0)
    layered = many(as_sd_scripts=True, multires_iterations=6, multires_discount=0.8)
    assert layered.std().item() == pytest.approx(1, rel=1e-5)
    squares = layered.square().mean(dim=(1, 2, 3))
    assert squares.min() < 0.85 < 1.15 < squares.max()


def test_as_sd_scripts_the_first_layer_is_as_fine_as_the_noise() -> None:
    # Two equal shares of white noise: the sum correlates with either by 1 / sqrt(2), and stays
    # white. Ours begins with the second layer.
    plain, theirs = many(), many(as_sd_scripts=True, multires_iterations=1)
    assert (plain * theirs).mean().item() == pytest.approx(0.5**0.5, abs=0.02)
    assert abs(neighbours(theirs)) < 0.02
    assert (plain * many(multires_iterations=1)).mean().item() > 0.95


def test_perturbation_adds_its_square_to_the_variance() -> None:
    noise = torch.zeros(6, 4, 64, 64)
    shown = InputPerturbation(gamma=0.1)(noise, generators(KEYS))
    # 98304 draws: the standard error of a variance is sqrt(2 / n) of it.
    assert shown.var().item() == pytest.approx(0.01, rel=5 * (2 / 98304) ** 0.5)
    assert InputPerturbation()(noise, []) is noise


def test_random_perturbation_is_drawn_for_each_sample_or_shared_as_in_sd_scripts() -> None:
    noise = torch.zeros(6, 4, 64, 64)
    own = InputPerturbation(gamma=0.1, random_gamma=True)(noise, generators(KEYS))
    shared = InputPerturbation(gamma=0.1, random_gamma=True, as_sd_scripts=True)(
        noise, generators(KEYS)
    )
    assert own.std(dim=(1, 2, 3)).max() / own.std(dim=(1, 2, 3)).min() > 1.2
    assert shared.std(dim=(1, 2, 3)).max() / shared.std(dim=(1, 2, 3)).min() < 1.1
    alone = InputPerturbation(gamma=0.1, random_gamma=True)(noise[3:4], generators(KEYS[3:4]))
    assert torch.equal(own[3:4], alone)

from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from loralab.models.codec import LatentCodec, mean_latents, sample_latents
from loralab.models.registry import load_family


@pytest.fixture(scope="module")
def codec(folder: Path) -> LatentCodec:
    return load_family("sd1", folder).load_codec()


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_moments_are_the_librarys_own_and_unscaled(codec: LatentCodec) -> None:
    images = torch.rand(2, 3, 64, 96) * 2 - 1
    moments = codec.moments(images)
    assert moments.shape == (2, 8, 8, 12)
    assert not moments.requires_grad
    with torch.no_grad():
        posterior = codec.vae.encode(images).latent_dist
    torch.testing.assert_close(moments.chunk(2, dim=1)[0], posterior.mode(), rtol=0, atol=0)


def test_a_draw_is_the_scaled_draw_of_the_librarys_posterior() -> None:
    moments = torch.randn(1, 8, 4, 6) * 20  # log-variances far outside the clamp too
    wanted = DiagonalGaussianDistribution(moments).sample(generators(7)[0])
    got = sample_latents(moments, 0.18215, generators(7))
    torch.testing.assert_close(got, 0.18215 * wanted)


def test_a_sample_is_drawn_from_its_own_generator_alone() -> None:
    moments = torch.randn(3, 8, 4, 4)
    together = sample_latents(moments, 0.5, generators(1, 2, 3))
    alone = sample_latents(moments[2:], 0.5, generators(3))
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=0)


def test_mean_latents_are_the_scaled_mean() -> None:
    moments = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(mean_latents(moments, 0.25), moments[:, :4] / 4)


def test_decode_undoes_the_scale_and_stays_in_range(codec: LatentCodec) -> None:
    latents = torch.randn(1, 4, 8, 8) * 3
    with torch.no_grad():
        wanted = codec.vae.decode(latents / 0.18215).sample.clamp(-1, 1)
    got = codec.decode(latents)
    assert got.shape == (1, 3, 64, 64)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_autocast_and_half_precision_inputs_do_not_reach_the_vae(codec: LatentCodec) -> None:
    images = (torch.rand(1, 3, 64, 64) * 2 - 1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = codec.moments(images)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, codec.moments(images.float()), rtol=0, atol=0)

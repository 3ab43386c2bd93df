"""Loss weights against numbers and closed forms."""

from __future__ import annotations

import pytest
import torch

from loralab.diffusion.schedule import NoiseSchedule
from loralab.diffusion.weighting import WEIGHTINGS, loss_weights


def published_snr() -> torch.Tensor:
    """Signal-to-noise ratio of Stable Diffusion's schedule at timesteps 0, 250 and 500."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    schedule = NoiseSchedule(betas=betas, prediction_type="epsilon")
    return schedule.snr(torch.tensor([0, 250, 500]))


@pytest.mark.parametrize(
    ("prediction_type", "expected"),
    [("epsilon", [0.004254, 1.0, 1.0]), ("v_prediction", [0.004250, 0.673792, 0.276333])],
)
def test_min_snr_5_gives_the_numbers_of_the_published_schedule(
    prediction_type: str, expected: list[float]
) -> None:
    # Computed for Stable Diffusion's published schedule at timesteps 0, 250 and 500 with the
    # formulas of Hang et al. 2023.
    weights = loss_weights("min_snr", published_snr(), gamma=5.0, prediction_type=prediction_type)
    torch.testing.assert_close(weights, torch.tensor(expected), rtol=1e-4, atol=0)


def test_min_snr_of_simple_ratios_computed_by_hand() -> None:
    snr = torch.tensor([10.0, 5.0, 1.0, 0.25])
    epsilon = loss_weights("min_snr", snr, gamma=5.0, prediction_type="epsilon")
    velocity = loss_weights("min_snr", snr, gamma=5.0, prediction_type="v_prediction")
    torch.testing.assert_close(epsilon, torch.tensor([0.5, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(velocity, torch.tensor([5 / 11, 5 / 6, 0.5, 0.2]))


def test_both_prediction_types_weigh_the_error_of_the_clean_latents_alike() -> None:
    # An error e of the clean latents is sqrt(SNR) * e as noise and sqrt(SNR + 1) * e as velocity.
    snr = published_snr()
    epsilon = loss_weights("min_snr", snr, gamma=5.0, prediction_type="epsilon")
    velocity = loss_weights("min_snr", snr, gamma=5.0, prediction_type="v_prediction")
    torch.testing.assert_close(epsilon * snr, velocity * (snr + 1))


def test_velocity_weight_at_zero_snr_is_zero_not_nan() -> None:
    weights = loss_weights("min_snr", torch.zeros(1), gamma=5.0, prediction_type="v_prediction")
    assert weights.tolist() == [0.0]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_constant_weighs_all_alike(prediction_type: str) -> None:
    snr = published_snr()
    weights = loss_weights("constant", snr, gamma=5.0, prediction_type=prediction_type)
    assert weights.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_every_weighting_returns_one_finite_weight_per_sample(kind: str) -> None:
    weights = loss_weights(kind, published_snr(), gamma=5.0, prediction_type="epsilon")
    assert weights.shape == (3,)
    assert weights.dtype == torch.float32
    assert bool((weights.isfinite() & (weights >= 0)).all())


def test_unknown_weighting_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="soft"):
        loss_weights("soft", torch.ones(1), gamma=5.0, prediction_type="epsilon")

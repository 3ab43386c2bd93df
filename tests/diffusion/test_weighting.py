"""Loss weights against published numbers, hand-worked ones and closed forms."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from loralab.diffusion.schedule import NoiseSchedule
from loralab.diffusion.weighting import WEIGHTINGS, loss_weights, sd_scripts_weights

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
WORKED = torch.tensor([1175.44, 2.06553, 0.38185])  # published schedule, timesteps 0, 250, 500


def published_snr() -> torch.Tensor:
    """Signal-to-noise ratio of Stable Diffusion's schedule at timesteps 0, 250 and 500."""
    schedule = NoiseSchedule.from_betas(BETAS, prediction_type="epsilon")
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
    found = loss_weights("min_snr", published_snr(), prediction_type=prediction_type, strength=5.0)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=0)


# Worked by hand from the ratios 4, 1 and 0.25. One row a weighting and prediction type; the paper
# or program that a row's formula comes from is named in the function of that weighting.
BY_HAND = [
    ("constant", "epsilon", 0.0, [1, 1, 1]),
    ("constant", "v_prediction", 0.0, [1, 1, 1]),
    ("min_snr", "epsilon", 2.0, [2 / 4, 1, 1]),
    ("min_snr", "v_prediction", 2.0, [2 / 5, 1 / 2, 0.2]),
    ("min_snr", "sample", 2.0, [2, 1, 0.25]),
    ("min_snr", "flow_prediction", 2.0, [2 / 9, 1 / 4, 1 / 9]),
    ("soft_min_snr", "epsilon", 4.0, [4 / 8, 4 / 5, 4 / 4.25]),
    ("soft_min_snr", "v_prediction", 4.0, [2 / 5, 0.8 / 2, 1 / 4.25 / 1.25]),
    ("debiased", "epsilon", 0.0, [1 / 2, 1, 2]),
    ("debiased", "v_prediction", 0.0, [2 / 5, 1 / 2, 0.5 / 1.25]),
    ("p2", "epsilon", 1.0, [1 / 5, 1 / 2, 0.8]),
    ("p2", "epsilon", 0.5, [5**-0.5, 2**-0.5, 1.25**-0.5]),
    ("p2", "v_prediction", 1.0, [4 / 25, 1 / 4, 0.16]),
    ("scale_v_like_noise", "v_prediction", 0.0, [4 / 5, 1 / 2, 0.2]),
    ("v_like", "epsilon", 0.1, [1 + 0.1 * 5 / 4, 1 + 0.1 * 2, 1 + 0.1 * 5]),
]


@pytest.mark.parametrize(("kind", "prediction_type", "strength", "expected"), BY_HAND)
def test_weights_of_simple_ratios_worked_by_hand(
    kind: str, prediction_type: str, strength: float, expected: list[float]
) -> None:
    snr = torch.tensor([4.0, 1.0, 0.25])
    found = loss_weights(kind, snr, prediction_type=prediction_type, strength=strength)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_every_weighting_has_a_hand_worked_row() -> None:
    assert {row[0] for row in BY_HAND} == set(WEIGHTINGS)


@pytest.mark.parametrize("kind", sorted(set(WEIGHTINGS) - {"constant"}))
def test_all_prediction_types_weigh_the_error_of_the_clean_latents_alike(kind: str) -> None:
    # The model saw s * x + n * e, so an error of 1 in x is one of s / n in e, of 1 / n in the
    # velocity s * e - n * x, and (where s + n = 1) of 1 / n in the flow e - x.
    signal, sigma = torch.tensor([0.8, 0.28]), torch.tensor([0.6, 0.96])
    snr = (signal / sigma).square()

    def weights(prediction_type: str, ratios: torch.Tensor) -> torch.Tensor:
        return loss_weights(kind, ratios, prediction_type=prediction_type, strength=1.5)

    clean = weights("sample", snr)
    torch.testing.assert_close(weights("epsilon", snr) * (signal / sigma).square(), clean)
    torch.testing.assert_close(weights("v_prediction", snr) * (1 / sigma).square(), clean)
    line = torch.tensor([0.25, 0.75])
    ratios = ((1 - line) / line).square()
    torch.testing.assert_close(
        weights("flow_prediction", ratios) * (1 / line).square(), weights("sample", ratios)
    )


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "flow_prediction"])
@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_every_weight_is_finite_where_the_signal_ends(kind: str, prediction_type: str) -> None:
    snr = torch.tensor([1175.44, 0.38185, 0.0])
    weights = loss_weights(kind, snr, prediction_type=prediction_type, strength=5.0)
    assert bool(weights.isfinite().all())
    assert bool((weights >= 0).all())


@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_every_weight_of_the_published_schedule_is_finite_and_counts(kind: str) -> None:
    snr = NoiseSchedule.from_betas(BETAS, prediction_type="epsilon").snr.values
    weights = loss_weights(kind, snr, prediction_type="epsilon", strength=1.0)
    assert weights.shape == (1000,)
    assert weights.dtype == torch.float32
    assert bool((weights.isfinite() & (weights > 0)).all())


@pytest.mark.parity
def test_min_snr_agrees_with_the_training_script_of_diffusers() -> None:
    # examples/text_to_image/train_text_to_image_lora.py: the smaller of SNR and gamma, over SNR,
    # or over SNR + 1 for a velocity.
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    theirs = compute_snr(scheduler, torch.arange(1000))
    least = torch.stack([theirs, torch.full_like(theirs, 5.0)]).amin(dim=0)
    ours = NoiseSchedule.from_betas(BETAS, prediction_type="epsilon").snr.values
    for prediction_type, divisor in (("epsilon", theirs), ("v_prediction", theirs + 1)):
        found = loss_weights("min_snr", ours, prediction_type=prediction_type, strength=5.0)
        torch.testing.assert_close(found, least / divisor, rtol=1e-4, atol=0)


# Worked from the ratios 1175.44, 2.06553 and 0.38185 with the formulas of sd-scripts
# (library/custom_train_functions.py), where all but min-SNR see at most 1000.
SD_SCRIPTS = [
    ("constant", "epsilon", 0.0, [1, 1, 1]),
    ("min_snr", "epsilon", 5.0, [0.004254, 1, 1]),
    ("min_snr", "v_prediction", 5.0, [0.004250, 0.673792, 0.276333]),
    ("debiased", "epsilon", 0.0, [0.031623, 0.695799, 1.61828]),
    ("debiased", "v_prediction", 0.0, [1 / 1001, 1 / 3.06553, 1 / 1.38185]),
    ("scale_v_like_noise", "v_prediction", 0.0, [1000 / 1001, 0.673792, 0.276333]),
    ("v_like", "epsilon", 0.5, [1 + 0.5 * 1.001, 1 + 0.5 / 0.673792, 1 + 0.5 / 0.276333]),
]


@pytest.mark.parametrize(("kind", "prediction_type", "strength", "expected"), SD_SCRIPTS)
def test_the_rule_of_sd_scripts_gives_its_numbers(
    kind: str, prediction_type: str, strength: float, expected: list[float]
) -> None:
    found = sd_scripts_weights(
        kind, published_snr(), prediction_type=prediction_type, strength=strength
    )
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=0
    )


def test_ours_differs_from_sd_scripts_where_the_documentation_says() -> None:
    exact = loss_weights("debiased", WORKED, prediction_type="epsilon")
    assert exact[0].item() == pytest.approx(1175.44**-0.5)
    velocity = loss_weights("debiased", WORKED, prediction_type="v_prediction")
    theirs = sd_scripts_weights("debiased", WORKED, prediction_type="v_prediction")
    torch.testing.assert_close(velocity[1:] / theirs[1:], WORKED[1:].sqrt())


def test_unknown_weighting_is_our_mistake() -> None:
    with pytest.raises(KeyError, match="soft"):
        loss_weights("soft", torch.ones(1), prediction_type="epsilon")

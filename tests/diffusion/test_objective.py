"""The objective: what is drawn, what is compared, and that splitting a window changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from loralab.diffusion.noise import sample_generator
from loralab.diffusion.objective import NoisyLatents, Objective
from loralab.diffusion.schedule import NoiseSchedule

KEYS = [f"image#{number}" for number in range(8)]


def make_objective(prediction_type: str = "epsilon", weighting: str = "constant") -> Objective:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    schedule = NoiseSchedule(betas=betas, prediction_type=prediction_type)
    return Objective(schedule, weighting=weighting)


def generators(keys: list[str]) -> list[torch.Generator]:
    return [sample_generator(0, 0, key, "train") for key in keys]


def make_latents(keys: list[str]) -> Tensor:
    draws = [torch.randn(4, 6, 5, generator=sample_generator(0, 0, key, "latents")) for key in keys]
    return torch.stack(draws)


def test_a_samples_draw_does_not_depend_on_batch_size_or_neighbours() -> None:
    objective = make_objective()
    together = objective.draw(make_latents(KEYS), generators(KEYS))
    alone = objective.draw(make_latents(KEYS[5:6]), generators(KEYS[5:6]))
    assert torch.equal(together.noisy[5:6], alone.noisy)
    assert torch.equal(together.noise[5:6], alone.noise)
    assert torch.equal(together.timesteps[5:6], alone.timesteps)


def test_a_samples_timestep_does_not_depend_on_the_size_of_its_image() -> None:
    objective = make_objective()
    small = objective.draw(torch.zeros(8, 4, 4, 4), generators(KEYS))
    large = objective.draw(torch.zeros(8, 4, 16, 12), generators(KEYS))
    assert torch.equal(small.timesteps, large.timesteps)


def test_draw_mixes_as_the_schedule_does_in_float32() -> None:
    objective = make_objective()
    latents = make_latents(KEYS).bfloat16()
    sample = objective.draw(latents, generators(KEYS))
    expected = objective.schedule.add_noise(latents, sample.noise, sample.timesteps)
    assert torch.equal(sample.noisy, expected)
    assert sample.noisy.dtype == sample.noise.dtype == torch.float32


def test_recorded_timesteps_and_noise_are_used_as_given() -> None:
    objective = make_objective()
    recorded = objective.draw(make_latents(KEYS), generators(KEYS))
    replayed = objective.draw(
        make_latents(KEYS), [], timesteps=recorded.timesteps, noise=recorded.noise.double()
    )
    assert torch.equal(replayed.noisy, recorded.noisy)
    assert replayed.noise.dtype == torch.float32


def test_recording_one_draw_leaves_the_other_as_it_was() -> None:
    objective = make_objective()
    drawn = objective.draw(make_latents(KEYS), generators(KEYS))
    other_timesteps = torch.full((8,), 17)
    other_noise = torch.zeros(8, 4, 6, 5)
    with_timesteps = objective.draw(make_latents(KEYS), generators(KEYS), timesteps=other_timesteps)
    with_noise = objective.draw(make_latents(KEYS), generators(KEYS), noise=other_noise)
    assert with_timesteps.timesteps.tolist() == [17] * 8
    assert torch.equal(with_timesteps.noise, drawn.noise)
    assert torch.equal(with_noise.timesteps, drawn.timesteps)


def test_timesteps_stay_in_the_chosen_range() -> None:
    schedule = make_objective().schedule
    objective = Objective(schedule, min_timestep=300, max_timestep=302)
    keys = [f"image#{number}" for number in range(40)]
    sample = objective.draw(torch.zeros(40, 1, 1, 1), generators(keys))
    assert set(sample.timesteps.tolist()) == {300, 301}


@pytest.mark.parametrize(("low", "high"), [(5, 5), (-1, 10), (0, 1001)])
def test_impossible_timestep_range_is_our_mistake(low: int, high: int) -> None:
    with pytest.raises(AssertionError):
        Objective(make_objective().schedule, min_timestep=low, max_timestep=high)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_predicting_the_target_costs_nothing(prediction_type: str) -> None:
    objective = make_objective(prediction_type, "min_snr")
    latents = make_latents(KEYS)
    sample = objective.draw(latents, generators(KEYS))
    target = objective.schedule.target(latents, sample.noise, sample.timesteps)
    assert objective(target, latents, sample, weight=torch.ones(8)).loss.item() == 0


def test_loss_terms_of_two_pixels_computed_by_hand() -> None:
    # Betas such that alphas_cumprod is 0.9, 0.5 and the signal-to-noise ratio 9, 1; capped at 3
    # that is a weight of 1/3 and 1.
    betas = torch.tensor([0.1, 1 - 0.5 / 0.9], dtype=torch.float64)
    schedule = NoiseSchedule(betas=betas, prediction_type="epsilon")
    objective = Objective(schedule, weighting="min_snr", min_snr_gamma=3.0, max_timestep=2)
    latents = torch.zeros(2, 1, 1, 2)
    noise = torch.tensor([[1.0, 2.0], [0.0, 0.0]]).view(2, 1, 1, 2)
    sample = objective.draw(latents, [], timesteps=torch.tensor([0, 1]), noise=noise)
    prediction = torch.tensor([[0.0, 0.0], [1.0, 3.0]]).view(2, 1, 1, 2)
    terms = objective(prediction, latents, sample, weight=torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(terms.error, torch.tensor([2.5, 5.0]))
    torch.testing.assert_close(terms.per_sample, torch.tensor([2.5 / 3, 5.0]))
    torch.testing.assert_close(terms.loss, torch.tensor(0.25 * 2.5 / 3 + 0.75 * 5.0))


def test_loss_is_the_sum_of_weight_times_per_sample() -> None:
    objective = make_objective("v_prediction", "min_snr")
    latents = make_latents(KEYS)
    sample = objective.draw(latents, generators(KEYS))
    weight = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1])
    terms = objective(torch.zeros_like(latents), latents, sample, weight=weight)
    torch.testing.assert_close(terms.loss, (weight * terms.per_sample).sum())
    assert terms.loss.shape == ()


def test_half_precision_prediction_gives_a_float32_loss_and_a_half_precision_gradient() -> None:
    objective = make_objective()
    latents = make_latents(KEYS)
    sample = objective.draw(latents, generators(KEYS))
    prediction = torch.zeros_like(latents, dtype=torch.bfloat16).requires_grad_()
    terms = objective(prediction, latents, sample, weight=torch.full((8,), 1 / 8))
    terms.loss.backward()
    assert terms.loss.dtype == terms.per_sample.dtype == terms.error.dtype == torch.float32
    assert prediction.grad is not None
    assert prediction.grad.dtype == torch.bfloat16


def test_autocast_does_not_lower_the_loss_below_float32() -> None:
    objective = make_objective("v_prediction", "min_snr")
    latents = make_latents(KEYS)
    plain = objective.draw(latents, generators(KEYS))
    expected = objective(latents, latents, plain, weight=torch.ones(8)).per_sample
    with torch.autocast("cpu", torch.bfloat16):
        sample = objective.draw(latents, generators(KEYS))
        terms = objective(latents, latents, sample, weight=torch.ones(8))
    assert torch.equal(sample.noisy, plain.noisy)
    assert torch.equal(terms.per_sample, expected)


def test_error_for_the_log_carries_no_gradient() -> None:
    objective = make_objective()
    latents = make_latents(KEYS)
    sample = objective.draw(latents, generators(KEYS))
    prediction = torch.zeros_like(latents).requires_grad_()
    terms = objective(prediction, latents, sample, weight=torch.ones(8))
    assert terms.loss.requires_grad
    assert not terms.error.requires_grad


def test_missing_batch_dimension_of_weight_is_our_mistake() -> None:
    latents = torch.zeros(2, 1, 1, 1)
    sample = NoisyLatents(noisy=latents, noise=latents, timesteps=torch.zeros(2).long())
    with pytest.raises(AssertionError):
        make_objective()(latents, latents, sample, weight=torch.tensor(1.0))


def window_gradient(split: list[int], weight: Tensor) -> tuple[float, list[Tensor]]:
    """Return loss and gradient of a window of eight samples, split into micro-batches."""
    objective = make_objective("v_prediction", "min_snr")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1))
    loss, start = 0.0, 0
    for size in split:
        keys, share = KEYS[start : start + size], weight[start : start + size]
        latents = make_latents(keys)
        sample = objective.draw(latents, generators(keys))
        terms = objective(net(sample.noisy), latents, sample, weight=share)
        terms.loss.backward()
        loss, start = loss + terms.loss.item(), start + size
    assert start == len(KEYS)
    return loss, [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("split", [[4, 4], [2, 2, 2, 2], [1] * 8, [3, 5], [1, 6, 1]], ids=str)
@pytest.mark.parametrize(
    "weights",
    [[1.0] * 8, [1.0, 1.0, 0.3, 0.3, 2.0, 1.0, 1.0, 1.0], [1.0] * 5 + [0.0] * 3],
    ids=["equal", "weighted", "filled_tail"],
)
def test_any_split_of_a_window_gives_the_gradient_of_one_big_batch(
    split: list[int], weights: list[float]
) -> None:
    share = torch.tensor(weights) / sum(weights)
    whole_loss, whole = window_gradient([8], share)
    loss, gradients = window_gradient(split, share)
    assert loss == pytest.approx(whole_loss, rel=1e-5)
    assert len(gradients) == 4
    for gradient, expected in zip(gradients, whole, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)

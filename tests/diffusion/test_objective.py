"""The objective: what is drawn, what is compared, and that splitting a window changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loralab.diffusion.losses import HUBER_SCHEDULES, LOSSES
from loralab.diffusion.noise import InputPerturbation, NoiseRecipe, sample_generator
from loralab.diffusion.objective import LossRecipe, NoisyLatents, Objective
from loralab.diffusion.schedule import NoiseSchedule, rescale_to_zero_snr
from loralab.diffusion.targets import TARGETS
from loralab.diffusion.timesteps import TimestepSampler, WindowPlace
from loralab.diffusion.weighting import WEIGHTINGS, loss_weights

KEYS = [f"image#{number}" for number in range(8)]


BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()


def make_schedule(prediction_type: str = "epsilon") -> NoiseSchedule:
    if prediction_type == "flow_prediction":
        return NoiseSchedule.rectified_flow(1000)
    return NoiseSchedule.from_betas(BETAS, prediction_type=prediction_type)


def make_objective(
    prediction_type: str = "epsilon", weighting: str = "constant", **options: Any
) -> Objective:
    schedule = make_schedule(prediction_type)
    weights = loss_weights(
        weighting, schedule.snr.values, prediction_type=prediction_type, strength=5.0
    )
    return Objective(schedule, weights=weights, **options)


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
    objective = make_objective(timesteps=TimestepSampler(low=300, high=302))
    keys = [f"image#{number}" for number in range(40)]
    sample = objective.draw(torch.zeros(40, 1, 1, 1), generators(keys))
    assert set(sample.timesteps.tolist()) == {300, 301}


def test_timesteps_beyond_the_schedule_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="of 1000"):
        make_objective(timesteps=TimestepSampler(high=1001))


@pytest.mark.parametrize("prediction_type", TARGETS)
def test_predicting_the_target_costs_nothing(prediction_type: str) -> None:
    objective = make_objective(prediction_type, "min_snr")
    latents = make_latents(KEYS)
    sample = objective.draw(latents, generators(KEYS))
    target = objective.schedule.target(latents, sample.noise, sample.timesteps)
    assert objective(target, latents, sample, weight=torch.ones(8)).loss.item() == 0


def test_loss_terms_of_two_pixels_computed_by_hand() -> None:
    betas = torch.tensor([0.1, 0.5], dtype=torch.float64)
    schedule = NoiseSchedule.from_betas(betas, prediction_type="epsilon")
    objective = Objective(schedule, weights=torch.tensor([1 / 3, 1.0]))
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


def test_perturbation_reaches_the_input_and_not_the_target() -> None:
    plain = make_objective()
    perturbed = make_objective(perturbation=InputPerturbation(gamma=0.1))
    latents = make_latents(KEYS)
    one, other = (o.draw(latents, generators(KEYS)) for o in (plain, perturbed))
    assert torch.equal(one.noise, other.noise)
    assert torch.equal(one.timesteps, other.timesteps)
    assert not torch.equal(one.noisy, other.noisy)


def test_a_recorded_noise_is_shown_as_it_is() -> None:
    options = {"noise": NoiseRecipe(offset=1.0), "perturbation": InputPerturbation(gamma=1.0)}
    latents, noise = make_latents(KEYS), torch.ones(8, 4, 6, 5)
    timesteps = torch.arange(8)
    found = make_objective(**options).draw(latents, [], timesteps=timesteps, noise=noise)
    plain = make_objective().draw(latents, [], timesteps=timesteps, noise=noise)
    assert torch.equal(found.noisy, plain.noisy)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("prediction_type", TARGETS)
def test_parts_combine_freely(kind: str, weighting: str, prediction_type: str) -> None:
    objective = make_objective(
        prediction_type,
        weighting,
        loss=LossRecipe(kind=kind, preservation="outside_mask"),
        timesteps=TimestepSampler(density="cubic", spread="stratified"),
        noise=NoiseRecipe(offset=0.1, multires_iterations=3),
        perturbation=InputPerturbation(gamma=0.1),
    )
    latents = make_latents(KEYS)
    window = WindowPlace(first=0, size=8, jitter_seed=3)
    sample = objective.draw(latents, generators(KEYS), window=window)
    prediction = latents.clone().requires_grad_()
    mask = torch.ones(8, 1, 6, 5)
    mask[:, :, :3] = 0
    weight = torch.full((8,), 1 / 8)
    teacher = torch.zeros_like(latents)
    terms = objective(prediction, latents, sample, weight=weight, mask=mask, teacher=teacher)
    terms.loss.backward()
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()
    assert 0 < terms.loss.item() < float("inf")


@pytest.mark.parametrize("weighting", sorted(set(WEIGHTINGS) - {"v_like"}))
def test_the_last_timestep_of_a_zero_snr_schedule_has_a_finite_loss(weighting: str) -> None:
    schedule = NoiseSchedule.from_betas(rescale_to_zero_snr(BETAS), prediction_type="v_prediction")
    weights = loss_weights(
        weighting, schedule.snr.values, prediction_type="v_prediction", strength=5.0
    )
    for huber_schedule in HUBER_SCHEDULES.values():
        thresholds = huber_schedule(0.1, schedule.snr.values)
        objective = Objective(
            schedule, loss=LossRecipe(kind="huber"), weights=weights, thresholds=thresholds
        )
        latents = make_latents(KEYS[:1])
        sample = objective.draw(latents, generators(KEYS[:1]), timesteps=torch.tensor([999]))
        terms = objective(torch.zeros_like(latents), latents, sample, weight=torch.ones(1))
        assert torch.isfinite(terms.loss)


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
    zeros = torch.zeros(2).long()
    sample = NoisyLatents(noisy=latents, noise=latents, timesteps=zeros, input_noise=latents)
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

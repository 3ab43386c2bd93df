"""NoiseSchedule against closed forms, published numbers and diffusers' DDPMScheduler."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr
from diffusers.training_utils import compute_snr
from torch import Tensor

from loralab.diffusion.schedule import NoiseSchedule, rescale_to_zero_snr
from loralab.errors import ModelError

# The scheduler file that Stable Diffusion 1 and 2 and SDXL were published with.
STABLE_DIFFUSION: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "trained_betas": None,
}
FLOW = "flow_prediction"
CONFIGS = {
    "stable_diffusion": STABLE_DIFFUSION,
    "linear": STABLE_DIFFUSION | {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "trained_betas": STABLE_DIFFUSION | {"trained_betas": [0.1, 0.2, 0.3, 0.4]},
    "zero_snr": STABLE_DIFFUSION
    | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
}


def published() -> NoiseSchedule:
    return NoiseSchedule.from_config(STABLE_DIFFUSION)


def latents_and_noise(num_samples: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (num_samples, 4, 6, 5)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_tables_hold_the_values_of_the_published_schedule() -> None:
    # Computed for Stable Diffusion's published schedule: scaled linear, 0.00085 to 0.012, 1000
    # steps. The ratios were computed in float32, where 1 - a costs the first of them a digit.
    schedule = published()
    timesteps = torch.tensor([0, 250, 500, 750, 999])
    torch.testing.assert_close(
        schedule.signal(timesteps).square(),
        torch.tensor([0.99915, 0.673792, 0.276333, 0.0561698, 0.0046601]),
        rtol=1e-5,
        atol=0,
    )
    torch.testing.assert_close(
        schedule.snr(timesteps),
        torch.tensor([1175.44, 2.06553, 0.38185, 0.059513, 0.004682]),
        rtol=3e-5,
        atol=0,
    )


def test_first_signal_to_noise_ratio_is_exact() -> None:
    ratio = published().snr(torch.tensor([0])).item()
    assert ratio == pytest.approx((1 - 0.00085) / 0.00085, rel=1e-6)


def test_four_betas_give_the_products_computed_by_hand() -> None:
    betas = torch.tensor([0.1, 0.2, 0.5, 0.5], dtype=torch.float64)
    schedule = NoiseSchedule.from_betas(betas, prediction_type="v_prediction")
    signal = torch.tensor([0.9, 0.72, 0.36, 0.18]).sqrt()
    torch.testing.assert_close(schedule.signal.values, signal)
    torch.testing.assert_close(schedule.snr(torch.tensor([2])), torch.tensor([0.5625]))
    one, timesteps = torch.ones(1, 1, 1, 1), torch.tensor([2])
    assert schedule.add_noise(one, 2 * one, timesteps).item() == pytest.approx(0.6 + 0.8 * 2)
    assert schedule.target(one, 2 * one, timesteps).item() == pytest.approx(0.6 * 2 - 0.8)


@pytest.mark.parity
@pytest.mark.parametrize("name", CONFIGS)
def test_every_timestep_agrees_with_diffusers(name: str) -> None:
    """Compare all timesteps of a schedule with `DDPMScheduler` in float32."""
    config = CONFIGS[name]
    schedule = NoiseSchedule.from_config(config, prediction_type="v_prediction")
    scheduler_class: Any = DDPMScheduler
    theirs = scheduler_class(**config)
    assert schedule.num_timesteps == len(theirs.alphas_cumprod)
    timesteps = torch.arange(schedule.num_timesteps)
    latents, noise = latents_and_noise(len(timesteps))
    # They multiply the schedule up in float32, we in float64: hence not bit for bit.
    torch.testing.assert_close(
        schedule.add_noise(latents, noise, timesteps),
        theirs.add_noise(latents, noise, timesteps),
        rtol=1e-5,
        atol=2e-5,
    )
    torch.testing.assert_close(
        schedule.target(latents, noise, timesteps),
        theirs.get_velocity(latents, noise, timesteps),
        rtol=1e-5,
        atol=2e-5,
    )
    # In float32, 1 - a costs their first ratios four digits.
    torch.testing.assert_close(
        schedule.snr(timesteps), compute_snr(theirs, timesteps), rtol=3e-4, atol=1e-7
    )


@pytest.mark.parity
@pytest.mark.parametrize("name", CONFIGS)
def test_in_single_precision_every_timestep_is_that_of_diffusers_to_the_bit(name: str) -> None:
    config = CONFIGS[name]
    ours = NoiseSchedule.from_config(config, prediction_type="v_prediction", dtype=torch.float32)
    scheduler_class: Any = DDPMScheduler
    theirs = scheduler_class(**config)
    timesteps = torch.arange(len(theirs.alphas_cumprod))
    latents, noise = latents_and_noise(len(timesteps))
    for found, expected in (
        (ours.add_noise(latents, noise, timesteps), theirs.add_noise(latents, noise, timesteps)),
        (ours.target(latents, noise, timesteps), theirs.get_velocity(latents, noise, timesteps)),
        (ours.snr(timesteps), compute_snr(theirs, timesteps)),
    ):
        assert torch.equal(found, expected)


@pytest.mark.parity
def test_every_timestep_of_a_flow_agrees_with_diffusers() -> None:
    scheduler_class: Any = FlowMatchEulerDiscreteScheduler
    theirs = scheduler_class(num_train_timesteps=1000)
    schedule = NoiseSchedule.rectified_flow(1000)
    latents, noise = latents_and_noise(1000)
    # Their timesteps count from 1 to 1000, as the noise does: 1000 is noise alone.
    expected = theirs.scale_noise(latents, theirs.timesteps.flip(0), noise)
    assert theirs.timesteps[[0, -1]].tolist() == [1000, 1]
    torch.testing.assert_close(schedule.add_noise(latents, noise, torch.arange(1000)), expected)


@pytest.mark.parity
def test_zero_snr_rescaling_agrees_with_diffusers() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    torch.testing.assert_close(
        rescale_to_zero_snr(betas), rescale_zero_terminal_snr(betas), rtol=1e-12, atol=1e-15
    )


def test_noise_and_velocity_give_back_the_latents() -> None:
    # The rotation of Salimans & Ho: latents = sqrt(a) * noisy - sqrt(1 - a) * v.
    schedule = NoiseSchedule.from_config(STABLE_DIFFUSION, prediction_type="v_prediction")
    timesteps = torch.arange(0, 1000, 100)
    latents, noise = latents_and_noise(len(timesteps))
    noisy = schedule.add_noise(latents, noise, timesteps)
    velocity = schedule.target(latents, noise, timesteps)
    a = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2, 0)
    a = a[timesteps].float().view(-1, 1, 1, 1)
    torch.testing.assert_close(
        a.sqrt() * noisy - (1 - a).sqrt() * velocity, latents, rtol=1e-5, atol=1e-5
    )


def test_noise_and_flow_give_back_the_latents() -> None:
    # On the straight path of Liu et al. the step from noisy to clean is sigma times the velocity.
    schedule = NoiseSchedule.rectified_flow(10)
    timesteps = torch.arange(10)
    latents, noise = latents_and_noise(10)
    noisy = schedule.add_noise(latents, noise, timesteps)
    flow = schedule.target(latents, noise, timesteps)
    sigma = torch.linspace(0.1, 1.0, 10).view(-1, 1, 1, 1)
    torch.testing.assert_close(noisy - sigma * flow, latents)
    assert schedule.snr(torch.tensor([4, 9])).tolist() == [1.0, 0.0]


def test_coefficients_apply_per_sample_when_width_equals_batch_size() -> None:
    schedule = published()
    latents, noise = torch.ones(5, 4, 6, 5), torch.zeros(5, 4, 6, 5)
    timesteps = torch.tensor([0, 250, 500, 750, 999])
    noisy = schedule.add_noise(latents, noise, timesteps)
    expected = torch.tensor([0.99915, 0.673792, 0.276333, 0.0561698, 0.0046601]).sqrt()
    expected = expected[:, None].expand(5, 120)
    torch.testing.assert_close(noisy.flatten(1), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tables_stay_float32_when_the_module_changes_dtype(dtype: torch.dtype) -> None:
    schedule = published()
    before = copy.deepcopy(dict(schedule.named_buffers()))
    moved = torch.nn.Sequential(schedule).to(dtype)[0]
    for name, table in moved.named_buffers():
        torch.testing.assert_close(table, before[name], rtol=0, atol=0)
    assert len(before) == 3


def test_tables_follow_the_module_to_another_device() -> None:
    schedule = published().to("meta")
    assert {table.device.type for table in schedule.buffers()} == {"meta"}


def test_half_precision_inputs_give_float32_results() -> None:
    schedule = published()
    latents, noise = latents_and_noise(3)
    timesteps = torch.tensor([1, 500, 998])
    low = schedule.add_noise(latents.bfloat16(), noise.bfloat16(), timesteps)
    exact = schedule.add_noise(latents.bfloat16().float(), noise.bfloat16().float(), timesteps)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0, atol=0)


def test_tables_are_no_part_of_a_checkpoint() -> None:
    assert published().state_dict() == {}


@pytest.mark.parametrize(
    ("prediction_type", "expected"),
    [("epsilon", 5.0), ("v_prediction", 0.6 * 5 - 0.8 * 2), ("sample", 2.0)],
)
def test_target_is_what_the_prediction_type_names(prediction_type: str, expected: float) -> None:
    # One timestep that keeps 0.36 of the variance: 0.6 of the latents (2), 0.8 of the noise (5).
    betas = torch.tensor([0.64], dtype=torch.float64)
    schedule = NoiseSchedule.from_betas(betas, prediction_type=prediction_type)
    one, timesteps = torch.ones(1, 1, 1, 1), torch.tensor([0])
    found = schedule.target(2 * one, 5 * one, timesteps)
    assert found.item() == pytest.approx(expected)
    assert schedule.add_noise(2 * one, 5 * one, timesteps).item() == pytest.approx(1.2 + 4.0)


def test_a_flow_mixes_and_predicts_in_a_straight_line() -> None:
    schedule = NoiseSchedule.from_config({"num_train_timesteps": 4}, prediction_type=FLOW)
    one, timesteps = torch.ones(1, 1, 1, 1), torch.tensor([0])
    assert schedule.prediction_type == FLOW
    assert schedule.add_noise(2 * one, 6 * one, timesteps).item() == 0.75 * 2 + 0.25 * 6
    assert schedule.target(2 * one, 6 * one, timesteps).item() == 4.0


def test_a_flow_of_betas_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="mixes otherwise"):
        NoiseSchedule.from_betas(torch.tensor([0.5]), prediction_type=FLOW)


def test_a_file_without_prediction_type_means_epsilon() -> None:
    assert published().prediction_type == "epsilon"


def test_given_prediction_type_wins_over_the_file() -> None:
    config = STABLE_DIFFUSION | {"prediction_type": "epsilon"}
    schedule = NoiseSchedule.from_config(config, prediction_type="v_prediction")
    assert schedule.prediction_type == "v_prediction"


def test_zero_snr_rescaling_gives_the_published_values() -> None:
    # Computed for Stable Diffusion's published schedule with algorithm 1 of Lin et al. 2024.
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    rescaled = torch.cumprod(1 - rescale_to_zero_snr(betas), dim=0)
    torch.testing.assert_close(
        rescaled[[0, 500]],
        torch.tensor([0.99915, 0.241019], dtype=torch.float64),
        rtol=1e-5,
        atol=0,
    )
    assert rescaled[999] == 0


@pytest.mark.parametrize("in_file", [False, True])
def test_zero_snr_may_be_asked_for_and_called_off(in_file: bool) -> None:
    config = STABLE_DIFFUSION | {"rescale_betas_zero_snr": in_file}
    for asked, last in ((True, 0.0), (False, 0.0046601), (None, 0.0 if in_file else 0.0046601)):
        schedule = NoiseSchedule.from_config(
            config, prediction_type="v_prediction", zero_terminal_snr=asked
        )
        assert schedule.signal.values[-1].square().item() == pytest.approx(last, rel=1e-4)


def test_zero_snr_with_v_prediction_is_finite_at_the_last_timestep() -> None:
    schedule = NoiseSchedule.from_config(CONFIGS["zero_snr"])
    latents, noise = latents_and_noise(1)
    last = torch.tensor([999])
    torch.testing.assert_close(schedule.add_noise(latents, noise, last), noise)
    torch.testing.assert_close(schedule.target(latents, noise, last), -latents)
    assert schedule.snr(last).item() == 0


def test_every_problem_of_a_scheduler_file_is_named_at_once() -> None:
    config = {
        "beta_schedule": "squaredcos",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "prediction_type": "score",
    }
    with pytest.raises(ModelError) as caught:
        NoiseSchedule.from_config(config)
    messages = [problem.message for problem in caught.value.problems]
    assert len(messages) == 3
    assert "'score'" in messages[0]
    assert "beta_end is missing" in messages[1]
    assert "'squaredcos'" in messages[2]


def test_zero_snr_with_epsilon_is_refused() -> None:
    config = STABLE_DIFFUSION | {"rescale_betas_zero_snr": True}
    with pytest.raises(ModelError, match=r"set model\.prediction_type to v_prediction"):
        NoiseSchedule.from_config(config)


def test_epsilon_on_a_schedule_that_ends_in_pure_noise_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="zero SNR"):
        NoiseSchedule.from_betas(torch.tensor([0.5, 1.0]), prediction_type="epsilon")

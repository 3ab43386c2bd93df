"""What a wrong prediction costs, and how much each timestep weighs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from loralab.errors import ConfigError
from tests.effects.objectives import TIMESTEPS, objective, snr, weights
from tests.effects.registry import effect
from tests.effects.runs import Tiny

V = "model.prediction_type=v_prediction"
HUBER = "objective.loss=huber"


def cost(tiny: Tiny, *overrides: str, error: float = 3.0) -> torch.Tensor:
    """Return the loss of an error at each of `TIMESTEPS`."""
    found = objective(tiny, *overrides)
    zeros = torch.zeros(4, 4, 8, 8)
    sample = found.draw(zeros, [], timesteps=TIMESTEPS, noise=zeros)
    return found(zeros + error, zeros, sample, weight=torch.ones(4)).per_sample


@effect("objective.loss")
@pytest.mark.parametrize(
    ("loss", "expected"), [("l2", 9.0), ("l1", 3.0), ("log_cosh", 2.3093285), ("huber", 8.0)]
)
def test_the_loss_of_an_error_of_3_is_that_of_its_kind(
    tiny: Tiny, loss: str, expected: float
) -> None:
    # cosh(3) is 10.067662. A Huber loss with c = 4 knows the triangle 3, 4, 5: 2 * 4 * (5 - 4).
    fixed = ("objective.huber_c=4", "objective.huber_schedule=constant")
    found = cost(tiny, f"objective.loss={loss}", *(fixed if loss == "huber" else ()))
    torch.testing.assert_close(found, torch.full((4,), expected))


@effect("objective.loss")
def test_smooth_l1_is_huber_over_its_threshold(tiny: Tiny) -> None:
    fixed = ("objective.huber_c=4", "objective.huber_schedule=constant")
    found = cost(tiny, "objective.loss=smooth_l1", *fixed)
    torch.testing.assert_close(found, torch.full((4,), 2.0))


@effect("objective.huber_c")
def test_a_greater_threshold_is_nearer_to_the_square(tiny: Tiny) -> None:
    small, large = (cost(tiny, HUBER, f"objective.huber_c={c}") for c in (0.1, 0.9))
    assert (small < large).all()
    assert (large < 9).all()


@effect("objective.huber_schedule")
def test_the_threshold_changes_with_the_timestep_as_chosen(tiny: Tiny) -> None:
    # Far from 0 a Huber loss is 2c * (|d| - c): at |d| = 1000 that tells c. The thresholds of
    # sd-scripts (library/train_util.py, get_huber_threshold_if_needed) for c = 0.1, where sigma is
    # 0.0291674 at timestep 0 and 1.61828 at 500: 0.9 / (1 + sigma)^2 + 0.1, 0.1^(t / 1000), 0.1.
    expected = {
        "snr": [0.949709, 0.231284],
        "exponential": [1.0, 0.316228],
        "constant": [0.1, 0.1],
    }
    for schedule, thresholds in expected.items():
        found = cost(tiny, HUBER, f"objective.huber_schedule={schedule}", error=1000.0)
        assert (found[[0, 2]] / 2000).tolist() == pytest.approx(thresholds, rel=2e-3)


@effect("objective.weighting")
def test_min_snr_caps_what_clean_timesteps_count(tiny: Tiny) -> None:
    torch.testing.assert_close(weights(tiny), torch.ones(4))
    found = weights(tiny, "objective.weighting=min_snr")
    torch.testing.assert_close(found, torch.minimum(5 / snr(), torch.ones(4)), rtol=1e-4, atol=0)


@effect("objective.weighting")
def test_other_weightings_of_a_noise_model_are_those_of_their_papers(tiny: Tiny) -> None:
    expected = {
        "soft_min_snr": 5 / (snr() + 5),
        "debiased": snr() ** -0.5,
        "p2": 1 / (1 + snr()),
        "v_like": 1 + (snr() + 1) / snr(),
    }
    for word, values in expected.items():
        found = weights(tiny, f"objective.weighting={word}")
        torch.testing.assert_close(found, values, rtol=1e-4, atol=0)


@effect("objective.weighting")
def test_a_velocity_model_may_weigh_like_a_noise_model(tiny: Tiny) -> None:
    found = weights(tiny, V, "objective.weighting=scale_v_like_noise")
    torch.testing.assert_close(found, snr() / (snr() + 1), rtol=1e-4, atol=0)
    with pytest.raises(ConfigError, match=r"^objective\.weighting .* predicts epsilon; use min"):
        tiny.survey("objective.weighting=scale_v_like_noise")  # what the base's files say


@effect("objective.min_snr_gamma")
def test_gamma_is_the_cap(tiny: Tiny) -> None:
    found = weights(tiny, "objective.weighting=min_snr", "objective.min_snr_gamma=0.2")
    torch.testing.assert_close(found, torch.minimum(0.2 / snr(), torch.ones(4)), rtol=1e-4, atol=0)
    assert 0.2 < snr()[2] < 5, "timestep 500 is capped by this gamma and not by the default"


@effect("objective.p2_gamma")
def test_gamma_is_the_power_of_p2(tiny: Tiny) -> None:
    found = weights(tiny, "objective.weighting=p2", "objective.p2_gamma=0.5")
    torch.testing.assert_close(found, (1 + snr()) ** -0.5, rtol=1e-4, atol=0)


@effect("objective.v_like_scale")
def test_scale_is_the_share_of_the_velocity(tiny: Tiny) -> None:
    found = weights(tiny, "objective.weighting=v_like", "objective.v_like_scale=0.1")
    torch.testing.assert_close(found, 1 + 0.1 * (snr() + 1) / snr(), rtol=1e-4, atol=0)


@effect("objective.weight_rule")
def test_the_rule_of_sd_scripts_ends_the_ratio_at_1000(tiny: Tiny) -> None:
    exact = weights(tiny, "objective.weighting=debiased")
    theirs = weights(tiny, "objective.weighting=debiased", "objective.weight_rule=sd_scripts")
    assert exact[0].item() == pytest.approx(1175.44**-0.5, rel=1e-4)
    assert theirs[0].item() == pytest.approx(1000**-0.5, rel=1e-4)
    torch.testing.assert_close(theirs[1:], exact[1:])


@effect("objective.weight_rule", "objective.zero_terminal_snr")
def test_weights_belong_to_the_rescaled_schedule_or_as_in_sd_scripts_do_not(tiny: Tiny) -> None:
    chosen = (V, "objective.zero_terminal_snr=true", "objective.weighting=min_snr")
    exact, theirs = (
        weights(tiny, *chosen),
        weights(tiny, *chosen, "objective.weight_rule=sd_scripts"),
    )
    # Lin et al. 2024 leave 0.241019 of the variance at 500 and nothing at 999; before, it is
    # 0.276333 and 0.0046601. Below the cap the weight of a velocity is just that number.
    assert exact[2:].tolist() == pytest.approx([0.241019, 0.0], rel=1e-4)
    assert theirs[2:].tolist() == pytest.approx([0.276333, 0.0046601], rel=1e-4)


@effect("objective.noise_schedule")
def test_the_published_schedule_holds_whatever_the_files_of_the_base_say(
    tiny: Tiny, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny.base, base)
    (base / "scheduler" / "scheduler_config.json").unlink()
    DDPMScheduler(rescale_betas_zero_snr=True).save_pretrained(base / "scheduler")
    given = (f"model.path={base}", V)
    published = "objective.noise_schedule=stable_diffusion"
    own = objective(tiny, *given).schedule
    chosen = objective(tiny, *given, published).schedule
    # diffusers' default schedule is that of Ho et al. 2020, linear from 0.0001; SD's are the
    # cumulative products of 0.00085 to 0.012, linear in the square root.
    assert own.signal(TIMESTEPS[:1]).square().item() == pytest.approx(0.9999, rel=1e-6)
    squares = chosen.signal(torch.tensor([0, 250, 500, 999])).square().tolist()
    assert squares == pytest.approx([0.99915, 0.673792, 0.276333, 0.0046601], rel=1e-4)
    drawn = tiny.build(*given, published).job.module.family.schedule_config
    assert DDPMScheduler.from_config(drawn).alphas_cumprod[999].item() == pytest.approx(
        0.0046601, rel=1e-4
    )


@effect("objective.schedule_precision")
def test_in_single_precision_the_first_ratio_is_that_of_diffusers(tiny: Tiny) -> None:
    exact = objective(tiny).schedule.snr(TIMESTEPS)
    single = objective(tiny, "objective.schedule_precision=single").schedule.snr(TIMESTEPS)
    assert exact[0].item() == pytest.approx(0.99915 / 0.00085, rel=1e-6)
    # diffusers' own ratios square the signal and the noise again: alike but for the last digit.
    torch.testing.assert_close(single, snr(), rtol=3e-7, atol=0)
    assert abs(single[0] - exact[0]) > 0.01


@effect("objective.zero_terminal_snr")
def test_the_last_timestep_is_pure_noise_for_training_and_previews(tiny: Tiny) -> None:
    job = tiny.build(V, "objective.zero_terminal_snr=true").job
    latents, noise = torch.randn(2, 1, 4, 8, 8).unbind()
    last = torch.tensor([999])
    sample = job.module.objective.draw(latents, [], timesteps=last, noise=noise)
    assert torch.equal(sample.noisy, noise)
    config = job.module.family.schedule_config
    assert config["rescale_betas_zero_snr"] is True
    assert config["timestep_spacing"] == "trailing"
    plain = tiny.build(V).job.module.objective
    assert not torch.equal(plain.draw(latents, [], timesteps=last, noise=noise).noisy, noise)


@effect("objective.zero_terminal_snr")
def test_a_noise_model_is_refused_pure_noise(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"^objective\.zero_terminal_snr is true, .* epsilon: "):
        tiny.survey("objective.zero_terminal_snr=true")


@effect("objective.reduction")
def test_a_mask_is_averaged_over_by_its_area_or_by_all_cells(tiny: Tiny) -> None:
    threes, half = torch.full((1, 4, 8, 8), 3.0), torch.zeros(1, 1, 8, 8)
    half[..., :4] = 1
    for reduction, expected in (("by_weight", 9.0), ("by_count", 4.5)):
        found = objective(tiny, f"objective.reduction={reduction}")
        zeros = torch.zeros_like(threes)
        sample = found.draw(zeros, [], timesteps=torch.tensor([5]), noise=zeros)
        terms = found(threes, zeros, sample, weight=torch.ones(1), mask=half)
        assert terms.loss.item() == pytest.approx(expected)


@effect("objective.reduction")
def test_images_share_a_step_by_their_weights_or_by_counts(tiny: Tiny) -> None:
    # 12 images in micro-batches of at most 2, two of those to a step.
    for reduction, by_weight in (("by_weight", True), ("by_count", False)):
        built = tiny.build("trainer.accumulate_grad_batches=2", f"objective.reduction={reduction}")
        batches = built.epoch()
        for batch in batches:
            if (batch["loss_weight"] == 0).all():
                continue  # a filler
            size, window = len(batch["keys"]), batch["window_place"]["size"]
            share = 1 / window if by_weight else 1 / size / 2
            torch.testing.assert_close(batch["loss_weight"], torch.full((size,), share))
        assert {len(batch["keys"]) for batch in batches} == {1, 2}, "some are not full"


@effect("objective.min_timestep", "objective.max_timestep")
@pytest.mark.parametrize(
    ("limit", "band"), [("min_timestep=750", "750-999"), ("max_timestep=250", "000-249")]
)
def test_timesteps_outside_the_limits_are_never_trained(tiny: Tiny, limit: str, band: str) -> None:
    def bands(*overrides: str) -> set[str]:
        rows = tiny.run("logger=csv", *overrides).rows()
        prefix = "train/loss_by_timestep/"
        return {key.removeprefix(prefix) for row in rows for key in row if key.startswith(prefix)}

    assert bands(f"objective.{limit}") == {band}
    assert len(bands()) > 1

"""What the loss weighs, and which timesteps are trained on."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from tests.effects.registry import effect
from tests.effects.runs import Tiny

TIMESTEPS = torch.tensor([0, 100, 500, 999])


def ratios(tiny: Tiny, *overrides: str) -> Tensor:
    """Return the weight of each timestep: its loss over its plain error."""
    objective = tiny.build(*overrides).job.module.objective
    latents, noise, prediction = torch.randn(3, 4, 4, 8, 8).unbind()
    sample = objective.draw(latents, [], timesteps=TIMESTEPS, noise=noise)
    terms = objective(prediction, latents, sample, weight=torch.full((4,), 0.25))
    return terms.per_sample / terms.error


def snr() -> Tensor:
    """Return the signal-to-noise ratios by diffusers' own table."""
    table = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    alphas = table.alphas_cumprod[TIMESTEPS]
    return alphas / (1 - alphas)


@effect("objective.weighting")
def test_min_snr_caps_what_clean_timesteps_count(tiny: Tiny) -> None:
    torch.testing.assert_close(ratios(tiny), torch.ones(4))
    found = ratios(tiny, "objective.weighting=min_snr")
    torch.testing.assert_close(found, torch.minimum(5 / snr(), torch.ones(4)), rtol=1e-4, atol=0)


@effect("objective.min_snr_gamma")
def test_gamma_is_the_cap(tiny: Tiny) -> None:
    found = ratios(tiny, "objective.weighting=min_snr", "objective.min_snr_gamma=0.2")
    torch.testing.assert_close(found, torch.minimum(0.2 / snr(), torch.ones(4)), rtol=1e-4, atol=0)
    assert 0.2 < snr()[2] < 5, "timestep 500 is capped by this gamma and not by the default"


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

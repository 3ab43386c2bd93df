"""What a prediction costs: masks, kinds of loss, thresholds, the base that is kept; by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loralab.diffusion.objective import LossRecipe, LossTerms, Objective
from loralab.diffusion.schedule import NoiseSchedule

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()


def make_objective(**options: Any) -> Objective:
    return Objective(NoiseSchedule.from_betas(BETAS, prediction_type="epsilon"), **options)


# One sample of two channels and four cells, whose target is 0: the prediction is the error.
ERRORS = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[5.0, 2.0], [1.0, 4.0]]]])
TOP = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])


def terms_of(objective: Objective, **options: Any) -> LossTerms:
    """Return the loss of `ERRORS` at timestep 0 of 1000, in a window of one."""
    zeros = torch.zeros_like(ERRORS)
    sample = objective.draw(zeros, [], timesteps=torch.tensor([0]), noise=zeros)
    return objective(ERRORS, zeros, sample, weight=torch.ones(1), **options)


def test_a_mask_is_what_the_loss_is_the_mean_over() -> None:
    terms = terms_of(make_objective(), mask=TOP)
    assert terms.loss.item() == pytest.approx((1 + 4 + 25 + 4) / 4)
    assert terms.error.item() == pytest.approx((1 + 4 + 25 + 4) / 4)
    by_count = terms_of(make_objective(loss=LossRecipe(by_area=False)), mask=TOP)
    assert by_count.loss.item() == pytest.approx((1 + 4 + 25 + 4) / 8)


def test_a_full_mask_is_as_good_as_none() -> None:
    everywhere = torch.ones(1, 1, 2, 2)
    without, full = terms_of(make_objective()), terms_of(make_objective(), mask=everywhere)
    torch.testing.assert_close(full.loss, without.loss)


def test_what_a_mask_hides_gets_no_gradient() -> None:
    objective, zeros = make_objective(), torch.zeros_like(ERRORS)
    sample = objective.draw(zeros, [], timesteps=torch.tensor([0]), noise=zeros)
    prediction = ERRORS.clone().requires_grad_()
    objective(prediction, zeros, sample, weight=torch.ones(1), mask=TOP).loss.backward()
    assert prediction.grad is not None
    assert (prediction.grad[..., 1, :] == 0).all()
    assert (prediction.grad[..., 0, :] != 0).all()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("l1", 24 / 8), ("huber", 2 * 4 * 1 / 1), ("smooth_l1", 2 * 1), ("l2", 9.0)],
)
def test_the_loss_is_the_kind_that_was_chosen(kind: str, expected: float) -> None:
    # Huber losses of a difference of 3 with a threshold of 4: the triangle 3, 4, 5.
    threes = torch.full((1, 1, 2, 2), 3.0)
    objective = make_objective(loss=LossRecipe(kind=kind), thresholds=torch.full((1000,), 4.0))
    zeros = torch.zeros_like(threes)
    sample = objective.draw(zeros, [], timesteps=torch.tensor([7]), noise=zeros)
    terms = objective(threes, zeros, sample, weight=torch.ones(1))
    assert terms.loss.item() == pytest.approx(expected)
    assert terms.error.item() == 9, "logs show the mean squared error, whatever the loss"


def test_thresholds_are_those_of_the_samples_timesteps() -> None:
    thresholds = torch.tensor([4.0] * 500 + [1.25] * 500)  # 3, 4, 5 and 3, 1.25, 3.25
    objective = make_objective(loss=LossRecipe(kind="smooth_l1"), thresholds=thresholds)
    threes, zeros = torch.full((2, 1, 2, 2), 3.0), torch.zeros(2, 1, 2, 2)
    sample = objective.draw(zeros, [], timesteps=torch.tensor([499, 500]), noise=zeros)
    terms = objective(threes, zeros, sample, weight=torch.ones(2))
    torch.testing.assert_close(terms.per_sample, torch.tensor([2 * 1.0, 2 * 2.0]))


def test_preservation_adds_the_distance_from_the_base() -> None:
    # Squared errors are 96 / 8 = 12. The base is 2 away everywhere, or 2 above and 1 below.
    keep = LossRecipe(preservation="output", preservation_weight=0.5)
    objective = make_objective(loss=keep)
    assert terms_of(objective, teacher=ERRORS + 2).loss.item() == pytest.approx(12 + 0.5 * 4)
    assert terms_of(objective).loss.item() == pytest.approx(12), "validation has no teacher"
    base = ERRORS + torch.tensor([2.0, 1.0]).view(1, 1, 2, 1)
    assert terms_of(objective, teacher=base).loss.item() == pytest.approx(12 + 0.5 * 2.5)


def test_outside_the_mask_the_base_is_kept_and_inside_it_is_learnt() -> None:
    keep = LossRecipe(preservation="outside_mask", preservation_weight=0.5)
    base = ERRORS + torch.tensor([2.0, 1.0]).view(1, 1, 2, 1)
    terms = terms_of(make_objective(loss=keep), mask=TOP, teacher=base)
    assert terms.loss.item() == pytest.approx(34 / 4 + 0.5 * 1)
    assert terms.error.item() == pytest.approx(34 / 4), "logs show the error of the target"


def test_without_a_mask_nothing_is_outside() -> None:
    objective = make_objective(loss=LossRecipe(preservation="outside_mask"))
    assert terms_of(objective, teacher=ERRORS + 2).loss.item() == pytest.approx(12)


def test_preservation_is_weighed_by_timestep_as_the_loss_is() -> None:
    keep = LossRecipe(preservation="output", preservation_weight=0.5)
    weights = torch.full((1000,), 0.25)
    objective = make_objective(loss=keep, weights=weights)
    found = terms_of(objective, teacher=ERRORS + 2).loss.item()
    assert found == pytest.approx(0.25 * (12 + 0.5 * 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_training_keeps_the_tables_in_float32(dtype: torch.dtype) -> None:
    objective = make_objective(weights=torch.full((1000,), 1 / 3))
    before = terms_of(objective).loss
    assert torch.equal(terms_of(objective.to(dtype)).loss, before)
    assert objective.state_dict() == {}

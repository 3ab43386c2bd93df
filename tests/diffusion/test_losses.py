"""Elementwise losses, thresholds and masked means against hand-worked numbers and torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from loralab.diffusion.losses import HUBER_SCHEDULES, LOSSES, masked_mean

ROBUST = ("huber", "smooth_l1")


def of(kind: str, difference: list[float], threshold: float = 4.0) -> Tensor:
    """Return a loss of a row of differences."""
    row = torch.tensor(difference, dtype=torch.float32).view(1, 1, 1, -1)
    return LOSSES[kind](row, torch.full((1, 1, 1, 1), threshold)).flatten()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("l2", [0, 9, 9]),
        ("l1", [0, 3, 3]),
        ("huber", [0, 2 * 4 * (5 - 4), 8]),  # the triangle 3, 4, 5
        ("smooth_l1", [0, 2 * (5 - 4), 2]),
        ("log_cosh", [0, 2.3093285, 2.3093285]),  # cosh(3) = 10.067662
    ],
)
def test_losses_of_a_difference_of_3_worked_by_hand(kind: str, expected: list[float]) -> None:
    torch.testing.assert_close(of(kind, [0, 3, -3]), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("kind", LOSSES)
def test_a_greater_difference_costs_more(kind: str) -> None:
    losses = of(kind, [0, 1e-3, 0.1, 1, 10, 100], threshold=0.1)
    assert losses[0] == 0
    assert bool((losses.diff() > 0).all())


def test_robust_losses_are_square_near_0_and_straight_far_away() -> None:
    near, far = [0.001, 0.01], [1e3, 1e4]
    torch.testing.assert_close(of("huber", near), torch.tensor([1e-6, 1e-4]))
    torch.testing.assert_close(of("smooth_l1", near), torch.tensor([1e-6, 1e-4]) / 4)
    torch.testing.assert_close(
        of("log_cosh", near), torch.tensor([1e-6, 1e-4]) / 2, rtol=1e-3, atol=1e-7
    )
    torch.testing.assert_close(of("huber", far), torch.tensor([8e3, 8e4]), rtol=5e-3, atol=0)
    torch.testing.assert_close(of("smooth_l1", far), torch.tensor([2e3, 2e4]), rtol=5e-3, atol=0)
    torch.testing.assert_close(of("log_cosh", far), torch.tensor(far) - math.log(2))


@pytest.mark.parametrize("kind", ROBUST)
def test_a_small_difference_keeps_its_digits(kind: str) -> None:
    # sqrt(d^2 + c^2) - c taken literally is 0 in float32 here.
    expected = {"huber": 1e-10, "smooth_l1": 1e-10}[kind]
    assert of(kind, [1e-5], threshold=1.0).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parity
def test_l1_and_l2_are_those_of_torch() -> None:
    one, other = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).unbind()
    unused = torch.ones(3, 1, 1, 1)
    for kind, theirs in (("l2", functional.mse_loss), ("l1", functional.l1_loss)):
        expected = theirs(one, other, reduction="none")
        torch.testing.assert_close(LOSSES[kind](one - other, unused), expected)


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_and_their_gradients_are_finite_everywhere(kind: str) -> None:
    difference = torch.tensor([0.0, 1e-30, 1e4, -1e4]).view(1, 1, 1, -1).requires_grad_()
    loss = LOSSES[kind](difference, torch.full((1, 1, 1, 1), 0.1))
    loss.sum().backward()
    assert difference.grad is not None
    assert bool((loss.isfinite() & difference.grad.isfinite()).all())


# Stable Diffusion's published schedule at timesteps 0, 250 and 500: sigma is 0.0291674, 0.695799
# and 1.61828. c is 0.1, the default of sd-scripts (library/train_util.py,
# get_huber_threshold_if_needed): 0.9 / 1.0291674^2 + 0.1 and so on.
RATIOS = torch.tensor([1175.44, 2.06553, 0.38185])


def test_snr_thresholds_worked_by_hand() -> None:
    found = HUBER_SCHEDULES["snr"](0.1, RATIOS)
    torch.testing.assert_close(
        found, torch.tensor([0.949709, 0.412964, 0.231284]), rtol=1e-5, atol=0
    )


def test_snr_threshold_of_pure_noise_is_c() -> None:
    assert HUBER_SCHEDULES["snr"](0.1, torch.zeros(1)).item() == pytest.approx(0.1)


def test_exponential_thresholds_worked_by_hand() -> None:
    found = HUBER_SCHEDULES["exponential"](0.1, torch.ones(1000))
    expected = torch.tensor([1.0, 0.562341, 0.316228, 0.100231], dtype=found.dtype)
    torch.testing.assert_close(found[[0, 250, 500, 999]], expected, rtol=1e-5, atol=0)


def test_a_constant_threshold_is_c_everywhere() -> None:
    assert HUBER_SCHEDULES["constant"](0.25, RATIOS).tolist() == [0.25] * 3


VALUES = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[5.0, 2.0], [1.0, 4.0]]]])  # (1, 2, 2, 2)


@pytest.mark.parametrize(
    ("mask", "by_area", "by_count"),
    [
        ([[1.0, 1.0], [1.0, 1.0]], 24 / 8, 24 / 8),
        ([[1.0, 0.0], [0.0, 0.0]], 6 / 2, 6 / 8),
        ([[0.5, 0.0], [0.0, 0.5]], 8 / 2, 8 / 8),
        ([[0.0, 0.0], [0.0, 0.0]], 0.0, 0.0),
    ],
)
def test_masked_means_worked_by_hand(
    mask: list[list[float]], by_area: float, by_count: float
) -> None:
    cells = torch.tensor(mask)[None, None]
    assert masked_mean(VALUES, cells).item() == pytest.approx(by_area)
    assert masked_mean(VALUES, cells, by_area=False).item() == pytest.approx(by_count)


def test_without_a_mask_the_mean_is_plain() -> None:
    assert masked_mean(VALUES, None).item() == masked_mean(VALUES, None, by_area=False).item() == 3


def test_half_a_mask_does_not_halve_the_mean() -> None:
    values, left = torch.full((2, 4, 8, 8), 7.0), torch.zeros(2, 1, 8, 8)
    left[..., :4] = 1
    torch.testing.assert_close(masked_mean(values, left), torch.tensor([7.0, 7.0]))

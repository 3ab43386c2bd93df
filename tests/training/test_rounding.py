"""Stochastic rounding to bfloat16 against probabilities worked out by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor

from loralab.training.rounding import round_to_bfloat16, with_stochastic_rounding

MANY = 200_000


def rounded(value: float, *, seed: int = 0, count: int = MANY) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return round_to_bfloat16(torch.full((count,), value), generator)


@pytest.mark.parametrize(
    ("value", "low", "high", "share_up"),
    [
        # Between 1 and 2 bfloat16 has steps of 2^-7; 1 + 2^-9 lies a quarter of the way up.
        (1 + 2**-9, 1.0, 1 + 2**-7, 0.25),
        (1 + 3 * 2**-9, 1.0, 1 + 2**-7, 0.75),
        (-(1 + 2**-9), -1.0, -(1 + 2**-7), 0.25),
        # Between 128 and 256 the steps are 1.
        (200.125, 200.0, 201.0, 0.125),
        # An update of 2^-12 to a weight of 1: one in thirty-two is kept, as the step 2^-7.
        (1 + 2**-12, 1.0, 1 + 2**-7, 1 / 32),
        # Across the power of two: below 1 the steps are 2^-8.
        (1 - 2**-10, 1.0, 1 - 2**-8, 0.25),
        # Below the smallest normal number the steps stay 2^-133.
        (5 * 2.0**-135, 2.0**-133, 2.0**-132, 0.25),
    ],
)
def test_a_value_goes_to_a_neighbour_with_the_probability_of_its_distance(
    value: float, low: float, high: float, share_up: float
) -> None:
    found = rounded(value).double()
    assert set(found.tolist()) == {low, high}
    share = float((found == high).double().mean())
    five_errors = 5 * (share_up * (1 - share_up) / MANY) ** 0.5
    assert share == pytest.approx(share_up, abs=five_errors)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.140625, 2.0**-133, float("inf")])
def test_what_bfloat16_holds_is_not_moved(value: float) -> None:
    found = rounded(value, count=1000)
    assert torch.equal(
        found.view(torch.int16), torch.full((1000,), value).bfloat16().view(torch.int16)
    )


def test_what_is_not_a_number_stays_so() -> None:
    assert bool(rounded(float("nan"), count=1000).isnan().all())


def test_the_same_seed_rounds_alike_and_another_otherwise() -> None:
    assert torch.equal(rounded(1.003), rounded(1.003))
    assert not torch.equal(rounded(1.003), rounded(1.003, seed=1))


def sgd(weight: Tensor, *, seed: int = 0, **options: Any) -> tuple[nn.Parameter, Any]:
    parameter = nn.Parameter(weight)
    return parameter, with_stochastic_rounding(torch.optim.SGD, seed=seed)([parameter], **options)


def test_updates_that_plain_bfloat16_loses_are_kept_in_expectation() -> None:
    """One hundred updates of 2^-12 move a weight of 1 by 100 / 4096 in float32."""
    plain = nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
    lossy = torch.optim.SGD([plain], lr=2**-12)
    kept, careful = sgd(torch.ones(20_000, dtype=torch.bfloat16), lr=2**-12)
    for _ in range(100):
        plain.grad, kept.grad = torch.full_like(plain, -1), torch.full((20_000,), -1.0)
        lossy.step()
        careful.step()
    assert bool((plain == 1).all()), "the nearest value to 1 + 2^-12 is 1"
    # Each of the steps of 2^-7 has the probability 1/32: the mean of 20,000 has an error of 1e-4.
    assert float(kept.detach().double().mean()) == pytest.approx(1 + 100 / 4096, abs=5e-4)


def steps(optimizer: Any, parameters: list[nn.Parameter], first: int, last: int) -> None:
    for number in range(first, last):
        for place, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(1000 * number + place)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def pair(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(9)
    shapes = ((8, 16), (16, 4))
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


OPTIMIZERS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.AdamW, {"lr": 1e-2, "fused": True}),
    (torch.optim.AdamW, {"lr": 1e-2}),
    (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    (torch.optim.SGD, {"lr": 1e-2}),
    (torch.optim.RMSprop, {"lr": 1e-2}),
    (torch.optim.Adafactor, {"lr": 1e-2}),
    (Adafactor, {"lr": 1e-2, "relative_step": False, "scale_parameter": True}),
    (Adafactor, {"lr": None, "relative_step": True}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_a_step_is_the_float32_step_rounded_to_a_neighbour(kind: Any, options: Any) -> None:
    ours, theirs = pair(torch.bfloat16), pair(torch.bfloat16)
    exact = [nn.Parameter(p.detach().float()) for p in theirs]
    steps(with_stochastic_rounding(kind, seed=3)(ours, **options), ours, 0, 1)
    steps(kind(exact, **options), exact, 0, 1)
    for own, wanted in zip(ours, exact, strict=True):
        # Two neighbours are 2^-7 of the lower power of two apart, at most 1/128 of the value.
        assert bool(((own.double() - wanted.double()).abs() <= wanted.double().abs() / 128).all())
        nearest = wanted.to(torch.bfloat16)
        assert 0 < float((own == nearest).double().mean()) < 1


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_saved_and_loaded_in_the_middle_it_goes_on_bit_for_bit(kind: Any, options: Any) -> None:
    whole, halves = pair(torch.bfloat16), pair(torch.bfloat16)
    make = with_stochastic_rounding(kind, seed=3)
    steps(make(whole, **options), whole, 0, 6)
    first = make(halves, **options)
    steps(first, halves, 0, 3)
    state = copy.deepcopy(first.state_dict())
    torch.randn(5)  # whatever happens in between
    second = make(halves, **options)
    second.load_state_dict(state)
    steps(second, halves, 3, 6)
    for one, other in zip(whole, halves, strict=True):
        assert one.dtype == other.dtype == torch.bfloat16
        assert torch.equal(one, other)


def test_two_processes_round_alike_whatever_else_they_draw() -> None:
    """Nothing but seed, place and step counts, so replicas with equal gradients stay equal."""
    one, other = pair(torch.bfloat16), pair(torch.bfloat16)
    make = with_stochastic_rounding(torch.optim.AdamW, seed=3)
    first, second = make(one, lr=1e-2), make(other, lr=1e-2)
    for number in range(4):
        steps(first, one, number, number + 1)
        torch.manual_seed(number)
        steps(second, other, number, number + 1)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_parameters_and_steps_have_draws_of_their_own() -> None:
    parameters = [nn.Parameter(torch.ones(1000, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = with_stochastic_rounding(torch.optim.SGD, seed=0)(parameters, lr=2**-9)
    moved = []
    for _ in range(2):
        for parameter in parameters:
            with torch.no_grad():
                parameter.fill_(1)
            parameter.grad = torch.full((1000,), -1.0)
        optimizer.step()
        moved += [parameter.detach().clone() for parameter in parameters]
    for number, one in enumerate(moved):
        assert all(not torch.equal(one, other) for other in moved[number + 1 :])


def test_what_the_optimizer_keeps_is_float32_and_weights_are_half_as_large() -> None:
    """Adam: two moments of 4 bytes; the weight itself has 2 instead of 4."""
    (wide, _) = parameters = pair(torch.bfloat16)
    optimizer: Any = with_stochastic_rounding(torch.optim.AdamW, seed=0)(parameters, lr=1e-2)
    steps(optimizer, parameters, 0, 1)
    state = optimizer.state[wide]
    assert {k: v.dtype for k, v in state.items() if isinstance(v, Tensor) and v.dim()} == {
        "exp_avg": torch.float32, "exp_avg_sq": torch.float32,
    }  # fmt: skip
    assert sum(v.nbytes for v in state.values() if isinstance(v, Tensor) and v.dim()) == 128 * 8
    assert wide.nbytes == 128 * 2
    assert optimizer.state.keys() == set(parameters), "no copy is left behind"


def test_gradients_add_up_in_float32() -> None:
    """256 + 1 is 256 in bfloat16."""
    parameter, _ = sgd(torch.ones(1, dtype=torch.bfloat16), lr=0.1)
    (parameter * 256).sum().backward()
    (parameter * 1).sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.dtype == torch.float32
    assert float(parameter.grad) == 257


def test_the_class_that_is_named_is_the_class_that_is_built() -> None:
    _, optimizer = sgd(torch.ones(1, dtype=torch.bfloat16), lr=0.1)
    assert type(optimizer).__name__ == "SGD"
    assert isinstance(optimizer, torch.optim.SGD)

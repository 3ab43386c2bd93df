"""Learning-rate multipliers against numbers, closed forms and the schedulers of three libraries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler as get_diffusers_scheduler
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as theirs
from transformers import get_scheduler as get_transformers_scheduler

from loralab.training.lr_schedules import SHAPES, make_lr_multiplier

NO_LOSSES: dict[str, Any] = {"losses_before": lambda step: []}
OPTIONS: dict[str, dict[str, Any]] = {
    "cosine_with_restarts": {"num_cycles": 3},
    "cosine_with_min_lr": {"end_factor": 0.1},
    "polynomial": {"power": 2.0, "end_factor": 1e-3},
    "inverse_sqrt": {"timescale": 20},
    "warmup_stable_decay": {"decay_fraction": 0.2, "end_factor": 0.1},
    "one_cycle": {"rise_fraction": 0.3, "start_factor": 0.04, "end_factor": 4e-6},
    "step": {"step_size": 30, "gamma": 0.1},
    "multistep": {"milestones": [30, 80], "gamma": 0.1},
    "exponential": {"step_size": 30, "gamma": 0.1},
    "plateau": {"gamma": 0.5, "patience": 1, "threshold": 0.0, "end_factor": 0.0, **NO_LOSSES},
}


def multiplier_of(kind: str, **options: Any) -> Callable[[int], float]:
    return make_lr_multiplier(kind, **(OPTIONS.get(kind, {}) | options))


def rates(
    make: Callable[[torch.optim.Optimizer], Any], *, lr: float = 0.3, steps: int = 40
) -> list[float]:
    """Return the rate of every update under a scheduler of torch's kind."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


# Total 100 steps, warm-up 10, at steps 0, 5, 10, 40, 55, 70, 99. Linear, cosine, three cycles and
# polynomial (power 2, from 1e-4 to 1e-7) are what sd-scripts' library/train_util.py gives there,
# to six digits. REX by hand from Chen, Wolfe & Kyrillidis: z / (1/2 + z/2) with z = 2/3 at 40 is
# 4/5, with 1/2 is 2/3, with 1/3 is 1/2, with 1/90 is 2/91. Inverse square root by hand with
# timescale 30: sqrt(30 / 60) at 40, sqrt(30 / 75) at 55, sqrt(30 / 90) at 70, sqrt(30 / 119).
STEPS = [0, 5, 10, 40, 55, 70, 99]
NUMBERS: list[tuple[str, dict[str, Any], list[float]]] = [
    ("constant", {}, [0, 0.5, 1, 1, 1, 1, 1]),
    ("constant_with_warmup", {}, [0, 0.5, 1, 1, 1, 1, 1]),
    ("linear", {}, [0, 0.5, 1, 0.666667, 0.5, 0.333333, 0.011111]),
    ("cosine", {}, [0, 0.5, 1, 0.75, 0.5, 0.25, 0.000305]),
    ("cosine_with_restarts", {"num_cycles": 3}, [0, 0.5, 1, 1, 0.5, 1, 0.002739]),
    (
        "polynomial",
        {"power": 2.0, "end_factor": 1e-3},
        [0, 0.5, 1, 0.445, 0.25075, 0.112, 0.001123],
    ),
    ("rex", {}, [0, 0.5, 1, 0.8, 0.666667, 0.5, 0.021978]),
    ("inverse_sqrt", {"timescale": 30}, [0, 0.5, 1, 0.707107, 0.632456, 0.577350, 0.502096]),
]


@pytest.mark.parametrize(("kind", "options", "expected"), NUMBERS)
def test_multipliers_of_one_hundred_steps_with_ten_of_warmup(
    kind: str, options: dict[str, Any], expected: list[float]
) -> None:
    multiplier = make_lr_multiplier(kind, total_steps=100, warmup_steps=10, **options)
    assert [multiplier(step) for step in STEPS] == pytest.approx(expected, abs=5e-7)


SHARED = ("constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


@pytest.mark.parity
@pytest.mark.parametrize("get_scheduler", [get_diffusers_scheduler, get_transformers_scheduler])
@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
def test_learning_rates_agree_with_diffusers_and_transformers(
    get_scheduler: Callable[..., Any], kind: str, warmup_steps: int
) -> None:
    own: dict[str, Any] = {"num_cycles": 3} if kind == "cosine_with_restarts" else {}
    if kind == "polynomial":  # both end at 1e-7, a rate and not a factor
        ours_own = {"power": 2.0, "end_factor": 1e-7 / 0.3}
        own = {"power": 2.0}
        if get_scheduler is get_transformers_scheduler:
            own = {"scheduler_specific_kwargs": own}
    else:
        ours_own = own
        if own and get_scheduler is get_transformers_scheduler:
            own = {"scheduler_specific_kwargs": own}
    multiplier = make_lr_multiplier(kind, total_steps=40, warmup_steps=warmup_steps, **ours_own)
    ours = rates(lambda optimizer: theirs.LambdaLR(optimizer, multiplier))
    reference = rates(
        lambda optimizer: get_scheduler(
            kind, optimizer, num_warmup_steps=warmup_steps, num_training_steps=40, **own
        )
    )
    assert ours == pytest.approx(reference, rel=1e-12, abs=1e-15)


@pytest.mark.parity
@pytest.mark.parametrize("warmup_steps", [0, 7])
@pytest.mark.parametrize(
    ("kind", "own", "given"),
    [
        ("cosine_with_min_lr", {"end_factor": 0.1}, {"min_lr_rate": 0.1}),
        ("inverse_sqrt", {"timescale": 11}, {"timescale": 11}),
        (
            "warmup_stable_decay",
            # 0.3 of the steps after warm-up: 12 of 40, 10 of 33
            {"decay_fraction": 0.3, "end_factor": 0.2},
            {"min_lr_ratio": 0.2},
        ),
    ],
)
def test_learning_rates_agree_with_transformers(
    kind: str, own: dict[str, float], given: dict[str, float], warmup_steps: int
) -> None:
    start = 0.0
    if kind == "warmup_stable_decay":
        given = given | {"num_decay_steps": 10 if warmup_steps else 12}
        start = 0.2  # transformers warms up from the least rate here
    multiplier = make_lr_multiplier(
        kind, total_steps=40, warmup_steps=warmup_steps, warmup_start_factor=start, **own
    )
    ours = rates(lambda optimizer: theirs.LambdaLR(optimizer, multiplier))
    reference = rates(
        lambda optimizer: get_transformers_scheduler(
            kind,
            optimizer,
            num_warmup_steps=warmup_steps,
            num_training_steps=40,
            scheduler_specific_kwargs=given,
        )
    )
    assert ours == pytest.approx(reference, rel=1e-12)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "own", "make"),
    [
        (
            "step",
            {"step_size": 7, "gamma": 0.3},
            lambda o: theirs.StepLR(o, step_size=7, gamma=0.3),
        ),
        (
            "multistep",
            {"milestones": [5, 6, 30], "gamma": 0.3},
            lambda o: theirs.MultiStepLR(o, milestones=[5, 6, 30], gamma=0.3),
        ),
        (
            "exponential",
            {"step_size": 1, "gamma": 0.93},
            lambda o: theirs.ExponentialLR(o, gamma=0.93),
        ),
        (
            "one_cycle",
            {"rise_fraction": 0.3, "start_factor": 1 / 25, "end_factor": 1 / 25e4},
            lambda o: theirs.OneCycleLR(o, 0.3, total_steps=40, cycle_momentum=False),
        ),
        (
            "one_cycle",
            {"rise_fraction": 0.33, "start_factor": 0.1, "end_factor": 0.01},
            lambda o: theirs.OneCycleLR(
                o,
                0.3,
                total_steps=40,
                pct_start=0.33,
                div_factor=10,
                final_div_factor=10,
                cycle_momentum=False,
            ),
        ),
    ],
)
def test_learning_rates_agree_with_torch(
    kind: str, own: dict[str, Any], make: Callable[[torch.optim.Optimizer], Any]
) -> None:
    multiplier = make_lr_multiplier(kind, total_steps=40, **own)
    ours = rates(lambda optimizer: theirs.LambdaLR(optimizer, multiplier), steps=39)
    assert ours == pytest.approx(rates(make, steps=39), rel=1e-9)
    last = rates(make, steps=40)[-1]
    assert multiplier(39) * 0.3 == pytest.approx(last, rel=1e-9)


@pytest.mark.parity
def test_rex_agrees_with_pytorch_optimizer() -> None:
    module = import_module("pytorch_optimizer.lr_scheduler.rex")  # the extra `optim`
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = module.REXScheduler(optimizer, total_steps=40, max_lr=0.3)
    multiplier = make_lr_multiplier("rex", total_steps=40)
    # Its constructor has taken the step to 0 already.
    expected = [scheduler.step() for _ in range(1, 40)]
    assert [0.3 * multiplier(step) for step in range(1, 40)] == pytest.approx(expected, rel=1e-12)


LOSSES = [0.9, 0.8, 0.8, 0.81, 0.79995, 0.85, 0.7, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.6, 0.6]


@pytest.mark.parity
@pytest.mark.parametrize("patience", [0, 1, 2])
@pytest.mark.parametrize("threshold", [0.0, 1e-3])
def test_plateau_agrees_with_torch_after_every_validation(patience: int, threshold: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = theirs.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=threshold, min_lr=0.1, eps=0.0
    )
    falls = set()
    for count in range(1, len(LOSSES) + 1):
        reference.step(LOSSES[count - 1])
        multiplier = make_lr_multiplier(
            "plateau",
            total_steps=10,
            losses_before=lambda step, count=count: LOSSES[:count],
            gamma=0.5,
            patience=patience,
            threshold=threshold,
            end_factor=0.1,
        )
        assert multiplier(5) == optimizer.param_groups[0]["lr"], count
        falls.add(multiplier(5))
    assert len(falls) >= 3


def test_plateau_knows_only_the_validations_made_before_a_step() -> None:
    made = {2: 0.5, 4: 0.6, 6: 0.7}  # step -> loss; patience 1 is over with the third

    def losses_before(step: int) -> Sequence[float]:
        return [loss for when, loss in made.items() if when < step]

    options = {"gamma": 0.5, "patience": 1, "threshold": 0.0, "end_factor": 0.0}
    multiplier = make_lr_multiplier(
        "plateau", total_steps=10, losses_before=losses_before, **options
    )
    assert [multiplier(step) for step in range(9)] == [1, 1, 1, 1, 1, 1, 1, 0.5, 0.5]


def test_start_factor_is_the_multiplier_of_the_first_update() -> None:
    multiplier = make_lr_multiplier(
        "linear", total_steps=100, warmup_steps=10, warmup_start_factor=0.2
    )
    # 0.2 + 0.8 * s / 10
    assert [multiplier(step) for step in (0, 5, 10)] == pytest.approx([0.2, 0.6, 1.0])
    assert multiplier(55) == pytest.approx(0.5)


def test_start_factor_without_warmup_changes_nothing() -> None:
    with_factor = make_lr_multiplier("cosine", total_steps=9, warmup_start_factor=0.5)
    without = make_lr_multiplier("cosine", total_steps=9)
    assert [with_factor(step) for step in range(10)] == [without(step) for step in range(10)]


@pytest.mark.parametrize(
    ("kind", "end"),
    [("linear", 0), ("cosine", 0), ("cosine_with_restarts", 0), ("rex", 0),
     ("cosine_with_min_lr", 0.1), ("polynomial", 1e-3), ("warmup_stable_decay", 0.1)],
)  # fmt: skip
def test_falling_schedules_reach_their_end_after_the_last_update_and_stay_there(
    kind: str, end: float
) -> None:
    multiplier = multiplier_of(kind, total_steps=20, warmup_steps=2)
    assert multiplier(19) > end
    assert [multiplier(step) for step in (20, 21, 35)] == pytest.approx([end] * 3)


def test_stable_phase_stays_at_the_peak_until_the_last_fifth() -> None:
    multiplier = multiplier_of("warmup_stable_decay", total_steps=110, warmup_steps=10)
    assert [multiplier(step) for step in (10, 50, 90)] == [1.0, 1.0, 1.0]
    assert multiplier(100) == pytest.approx(0.55)  # half-way from 1 to 0.1


def test_exponential_is_step_without_the_stairs() -> None:
    stairs = multiplier_of("step", total_steps=100)
    smooth = multiplier_of("exponential", total_steps=100)
    assert [smooth(step) for step in (0, 30, 60)] == pytest.approx([1, 0.1, 0.01])
    assert [stairs(step) for step in (0, 29, 30, 59, 60)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert smooth(15) == pytest.approx(math.sqrt(0.1))


@pytest.mark.parametrize("kind", SHAPES)
@given(data=st.data())
def test_every_schedule_stays_between_zero_and_one(kind: str, data: st.DataObject) -> None:
    total_steps = data.draw(st.integers(1, 10_000))
    warmup_steps = data.draw(st.integers(0, total_steps - 1))
    start = data.draw(st.floats(0, 1))
    step = data.draw(st.integers(0, total_steps + 10))
    multiplier = multiplier_of(
        kind, total_steps=total_steps, warmup_steps=warmup_steps, warmup_start_factor=start
    )
    assert math.isfinite(multiplier(step))
    assert 0.0 <= multiplier(step) <= 1.0


@pytest.mark.parametrize("kind", sorted(SHAPES.keys() - {"one_cycle"}))
def test_warmup_ends_at_the_peak(kind: str) -> None:
    assert multiplier_of(kind, total_steps=50, warmup_steps=13)(13) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("cosin", {"total_steps": 10}),
        ("linear", {"total_steps": 0}),
        ("linear", {"total_steps": 10, "warmup_steps": 10}),
        ("linear", {"total_steps": 10, "warmup_steps": -1}),
        ("linear", {"total_steps": 10, "warmup_steps": 2, "warmup_start_factor": 1.5}),
    ],
)
def test_impossible_schedule_is_our_mistake(kind: str, options: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        make_lr_multiplier(kind, **options)


def test_option_of_another_kind_stops_when_the_schedule_is_made() -> None:
    with pytest.raises(TypeError, match="power"):
        make_lr_multiplier("linear", total_steps=10, power=2.0)

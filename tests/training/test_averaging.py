"""The average of the weights beside diffusers' own, and that looking at it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from diffusers.training_utils import EMAModel

from loralab.data.dataset import Item
from loralab.training.averaging import MovingAverage, is_schedule_free
from loralab.training.callbacks.steps import StepCallback
from tests.training.conftest import adapter_of

Make = Callable[..., Any]
USES = ("validation", "preview", "export")


class Diary(StepCallback):
    """Notes the live weights after every step."""

    def __init__(self) -> None:
        self.days: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.days.append(adapter_of(module))  # type: ignore[arg-type]


def average(**options: Any) -> MovingAverage:
    settings: dict[str, Any] = {
        "decay": 0.5, "warmup": False, "start_step": 0, "every_n_steps": 1, "use_for": USES,
    }  # fmt: skip
    return MovingAverage(**(settings | options))


@pytest.mark.parametrize("start_step", [0, 2])
def test_with_warm_up_it_is_the_average_of_diffusers(
    make_module: Make, make_data: Make, make_trainer: Make, items: list[Item], start_step: int
) -> None:
    ours, diary = average(decay=0.3, warmup=True, start_step=start_step), Diary()
    module = make_module(optimizer=torch.optim.AdamW, rate=1e-2, average=ours)
    first = adapter_of(module)
    make_trainer(max_steps=6, callbacks=[ours, diary]).fit(module, make_data(items))
    theirs = EMAModel([first[name] for name in first], decay=0.3, update_after_step=start_step)
    for day in diary.days:
        theirs.step([torch.nn.Parameter(day[name]) for name in first])
    for name, expected in zip(first, theirs.shadow_params, strict=True):
        torch.testing.assert_close(ours.weights[name], expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(ours.weights[name], diary.days[-1][name])


def test_without_warm_up_the_first_weights_count_as_well(
    make_module: Make, make_data: Make, make_trainer: Make, items: list[Item]
) -> None:
    ours, diary = average(), Diary()
    module = make_module(optimizer=torch.optim.AdamW, rate=1e-2, average=ours)
    first = adapter_of(module)
    make_trainer(max_steps=2, callbacks=[ours, diary]).fit(module, make_data(items))
    one, two = diary.days
    for name in first:  # a half of a half of the start
        torch.testing.assert_close(
            ours.weights[name], 0.25 * first[name] + 0.25 * one[name] + 0.5 * two[name]
        )


@pytest.mark.parametrize("use", USES)
def test_the_average_is_held_for_its_uses_and_the_live_weights_come_back(
    make_module: Make, make_data: Make, make_trainer: Make, items: list[Item], use: str
) -> None:
    ours = average(use_for=[use])
    module = make_module(optimizer=torch.optim.AdamW, rate=1e-2, average=ours)
    make_trainer(max_steps=2, callbacks=[ours]).fit(module, make_data(items))
    live = adapter_of(module)
    for other in USES:
        with module.weights_for(other):
            held = adapter_of(module)
        expected = ours.weights if other == use else live
        assert all(torch.equal(held[name], expected[name]) for name in live)
        assert all(torch.equal(adapter_of(module)[name], live[name]) for name in live)


class Looking(StepCallback):
    """Looks at the average after every step, as previews and validations do."""

    def on_step_end(self, trainer: L.Trainer, module: Any) -> None:
        with module.weights_for("validation"):
            pass


def test_looking_at_a_schedule_free_average_changes_no_bit_of_training(
    make_module: Make, make_data: Make, make_trainer: Make, items: list[Item]
) -> None:
    import schedulefree

    ends = []
    for callbacks in ([], [Looking()]):
        module = make_module(optimizer=schedulefree.AdamWScheduleFree, rate=1e-2)
        make_trainer(max_steps=4, callbacks=callbacks).fit(module, make_data(items))
        assert is_schedule_free(module.optimizer)
        live = adapter_of(module)
        with module.weights_for("export"):
            assert any(not torch.equal(adapter_of(module)[name], live[name]) for name in live)
        ends.append(live)
    one, other = ends
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_export_of_a_schedule_free_optimizer_is_its_own_average(
    make_module: Make, make_data: Make, make_trainer: Make, items: list[Item]
) -> None:
    import schedulefree

    module = make_module(optimizer=schedulefree.AdamWScheduleFree, rate=1e-2)
    make_trainer(max_steps=3).fit(module, make_data(items))
    with module.weights_for("export"):
        held = adapter_of(module)
    module.optimizer.eval()  # the library's own way
    assert all(torch.equal(adapter_of(module)[name], held[name]) for name in held)

"""Every recipe of `conf/optimizer` builds the class it names, trains, and goes on as it was."""

from __future__ import annotations

import pytest
import torch

from loralab.app.recipes import check_arguments, recipe_arguments
from loralab.app.toy_builds import try_optimizer
from loralab.errors import ConfigError
from tests.toy_optimizer import RECIPES, TRIED, Toy, recipe

CPU = torch.device("cpu")


def test_every_recipe_asked_for_is_there() -> None:
    assert set(RECIPES) >= {
        "adamw", "adamw_fused", "adamw8bit", "paged_adamw8bit", "lion", "lion8bit", "sgd",
        "rmsprop", "adafactor", "adafactor_relative", "dadapt_adam", "dadapt_sgd", "dadapt_lion",
        "prodigy", "prodigy_schedulefree", "adamw_schedulefree", "came", "muon", "soap",
        "ademamix", "adopt", "stable_adamw",
    }  # fmt: skip


@pytest.mark.parametrize("name", TRIED)
def test_the_class_is_the_one_named_and_every_rate_is_the_one_given(name: str) -> None:
    found = recipe(name)
    toy = Toy(found)
    module, _, kind = found["_target_"].rpartition(".")
    assert type(toy.optimizer).__name__ == kind
    assert type(toy.optimizer).__module__.partition(".")[0] == module.partition(".")[0]
    expected = 1.0 if found["lr"] is None else found["lr"]
    assert [group["initial_lr"] for group in toy.optimizer.param_groups] == [
        expected for _ in toy.optimizer.param_groups
    ]
    if "weight_decay" in found:
        decays = {group["weight_decay"] for group in toy.optimizer.param_groups}
        assert decays == {found["weight_decay"]}


@pytest.mark.parametrize("name", TRIED)
def test_the_loss_falls(name: str) -> None:
    losses = list(Toy(recipe(name)).losses(40))
    assert all(map(torch.isfinite, torch.tensor(losses)))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", TRIED)
def test_what_goes_on_from_a_checkpoint_is_what_never_stopped(name: str) -> None:
    found = recipe(name)
    whole, stopped, resumed = Toy(found), Toy(found), Toy(found)
    expected = list(whole.losses(12))
    assert list(stopped.losses(7)) == expected[:7]
    resumed.load(stopped.state())
    assert list(resumed.losses(5)) == expected[7:]
    for one, other in zip(whole.parameters, resumed.parameters, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", TRIED)
def test_a_wrong_argument_is_refused_with_the_nearest_one(name: str) -> None:
    found = recipe(name)
    check_arguments("optimizer", found, given=1)
    try_optimizer(found, CPU)
    wrong = next(argument for argument in recipe_arguments(found) if argument != "lr")
    broken = {**found, f"{wrong}x": found[wrong]}
    with pytest.raises(ConfigError) as refusal:
        try_optimizer(broken, CPU)
    (problem,) = refusal.value.problems
    assert problem.key == f"optimizer.{wrong}x"
    assert problem.message.endswith(f"Did you mean {wrong}?")


def test_a_paged_optimizer_is_refused_on_the_cpu_where_it_would_page_nothing() -> None:
    with pytest.raises(ConfigError, match=r"Paged.* cannot take a step on the cpu: .*supported"):
        try_optimizer(recipe("paged_adamw8bit"), CPU)


def test_an_optimizer_that_cannot_step_on_the_device_is_refused_before_the_weights() -> None:
    with pytest.raises(ConfigError, match=r"cannot take a step on the cpu: .*optimizer=adamw\.$"):
        try_optimizer({"_target_": "torch.optim.SparseAdam", "lr": 0.1}, CPU)

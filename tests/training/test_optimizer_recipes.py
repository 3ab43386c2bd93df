"""Every recipe of `conf/optimizer` builds the class it names, trains, and goes on as it was."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from loralab.app.build import optimizer_maker
from loralab.app.recipes import check_arguments, recipe_arguments
from loralab.app.toy_builds import try_optimizer
from loralab.config.store import conf_dir
from loralab.errors import ConfigError
from loralab.training.averaging import is_schedule_free
from tests.config.conftest import composed

RECIPES = sorted(path.stem for path in (conf_dir() / "optimizer").glob("*.yaml"))
SHAPES = ((8, 6), (6, 8), (5,), (4, 3, 3, 3))  # of LoRA, of a magnitude, of a convolution
CPU = torch.device("cpu")


@functools.cache
def recipe(name: str) -> dict[str, Any]:
    """Return a recipe as a run has it; skip where its package is not installed."""
    content = OmegaConf.to_container(composed("~experiment", f"optimizer={name}")["optimizer"])
    assert isinstance(content, dict)
    return content


def installed(name: str) -> dict[str, Any]:
    found = recipe(name)
    package = found["_target_"].partition(".")[0]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if "Paged" in found["_target_"] and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return found


class Toy:
    """Two groups of parameters, each pulled to a fixed place."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
        self.places = [p.detach() + torch.randn(p.shape) for p in self.parameters]
        lr = recipe["lr"] if recipe["lr"] is not None else 1.0
        groups = [
            {"params": self.parameters[:2], "lr": lr, "name": "one"},
            {"params": self.parameters[2:], "lr": lr, "name": "two"},
        ]
        self.optimizer = optimizer_maker(recipe)(groups)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        if is_schedule_free(self.optimizer):
            self.optimizer.train()

    def losses(self, steps: int) -> Iterator[float]:
        """Take steps; yield the loss before each."""
        for _ in range(steps):

            @torch.enable_grad()  # as Lightning's closure does
            def closure() -> Tensor:
                self.optimizer.zero_grad()
                pairs = zip(self.parameters, self.places, strict=True)
                loss = torch.stack([(p - place).square().mean() for p, place in pairs]).sum()
                loss.backward()
                return loss

            loss = self.optimizer.step(closure)
            self.schedule.step()
            yield float(loss.detach())

    def state(self) -> bytes:
        """Return what a checkpoint holds."""
        file = io.BytesIO()
        torch.save({"weights": self.parameters, "optimizer": self.optimizer.state_dict()}, file)
        return file.getvalue()

    def load(self, state: bytes) -> None:
        content = torch.load(io.BytesIO(state), weights_only=True)
        self.optimizer.load_state_dict(content["optimizer"])
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, content["weights"], strict=True):
                parameter.copy_(weight)


def test_every_recipe_asked_for_is_there() -> None:
    assert set(RECIPES) >= {
        "adamw", "adamw_fused", "adamw8bit", "paged_adamw8bit", "lion", "lion8bit", "sgd",
        "rmsprop", "adafactor", "adafactor_relative", "dadapt_adam", "dadapt_sgd", "dadapt_lion",
        "prodigy", "prodigy_schedulefree", "adamw_schedulefree", "came", "muon", "soap",
        "ademamix", "adopt", "stable_adamw",
    }  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_the_class_is_the_one_named_and_every_rate_is_the_one_given(name: str) -> None:
    found = installed(name)
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


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_falls(name: str) -> None:
    losses = list(Toy(installed(name)).losses(40))
    assert all(map(torch.isfinite, torch.tensor(losses)))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", RECIPES)
def test_what_goes_on_from_a_checkpoint_is_what_never_stopped(name: str) -> None:
    found = installed(name)
    whole, stopped, resumed = Toy(found), Toy(found), Toy(found)
    expected = list(whole.losses(12))
    assert list(stopped.losses(7)) == expected[:7]
    resumed.load(stopped.state())
    assert list(resumed.losses(5)) == expected[7:]
    for one, other in zip(whole.parameters, resumed.parameters, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", RECIPES)
def test_a_wrong_argument_is_refused_with_the_nearest_one(name: str) -> None:
    found = installed(name)
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
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ConfigError, match=r"Paged.* cannot take a step on the cpu: .*supported"):
        try_optimizer(recipe("paged_adamw8bit"), CPU)


def test_an_optimizer_that_cannot_step_on_the_device_is_refused_before_the_weights() -> None:
    with pytest.raises(ConfigError, match=r"cannot take a step on the cpu: .*optimizer=adamw\.$"):
        try_optimizer({"_target_": "torch.optim.SparseAdam", "lr": 0.1}, CPU)

"""Every argument of every recipe: changed alone, it changes where twelve steps on a toy lead.

What each optimizer does with it is its library's affair; ours is that the value arrives.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import Tiny
from tests.toy_optimizer import RECIPES, Toy, recipe, tried

OTHER: dict[str, Any] = {
    "lr": 0.5, "betas": [0.5, 0.6], "weight_decay": 0.3, "eps": 0.1, "momentum": 0.3,
    "nesterov": False, "alpha": 0.3, "scale_parameter": True, "warmup_init": True,
    "clip_threshold": 0.01, "d0": 1e-4, "d_coef": 1e4, "use_bias_correction": False,
    "weight_decouple": False, "ns_steps": 1, "precondition_frequency": 1,
    "t_alpha_beta3": 100,
}  # fmt: skip
# What tells only on larger tensors, on a GPU, or when the rate warms up: has a test of its own.
ELSEWHERE = ("fused", "min_8bit_size", "relative_step", "safeguard_warmup")
NEEDS = {  # argument -> what must be set for it to be read
    ("lion", "betas"): {"lr": 0.5},  # signs of momenta differ once they turn
    ("lion8bit", "betas"): {"lr": 0.5},
    ("prodigy_schedulefree", "d_coef"): {"d0": 1e-3},  # from far below, twelve steps go nowhere
    ("adafactor", "warmup_init"): {"lr": None, "relative_step": True},
}


def cases() -> list[Any]:
    return [
        tried(name, argument)
        for name in RECIPES
        for argument in recipe(name)
        if not argument.startswith("_") and argument not in ELSEWHERE
        if recipe(name)[argument] is not None or argument != "lr"  # without a rate of its own
    ]  # fmt: skip


def end(settings: dict[str, Any]) -> Tensor:
    """Return where the parameters are after twelve steps."""
    toy = Toy(settings)
    for _ in toy.losses(12):
        pass
    return torch.cat([p.detach().flatten() for p in toy.parameters])


@effect(
    "optimizer.alpha", "optimizer.betas", "optimizer.clip_threshold", "optimizer.d0",
    "optimizer.d_coef", "optimizer.eps", "optimizer.lr", "optimizer.momentum",
    "optimizer.nesterov", "optimizer.ns_steps", "optimizer.precondition_frequency",
    "optimizer.scale_parameter", "optimizer.t_alpha_beta3", "optimizer.use_bias_correction",
    "optimizer.warmup_init", "optimizer.weight_decay", "optimizer.weight_decouple",
)  # fmt: skip
@pytest.mark.parametrize(("name", "argument"), cases())
def test_an_argument_reaches_its_optimizer(name: str, argument: str) -> None:
    settings = {**recipe(name), **NEEDS.get((name, argument), {})}
    value = OTHER[argument]
    if argument == "weight_decouple":  # tells only where there is decay
        settings = {**settings, "weight_decay": 0.3}
    if argument == "betas" and len(settings["betas"]) == 3:
        value = [*value, 0.7]
    if argument == "scale_parameter":
        value = not settings["scale_parameter"]
    assert not torch.equal(end(settings), end({**settings, argument: value}))


@effect("optimizer.safeguard_warmup")
def test_the_safeguard_is_the_one_given() -> None:
    toy = Toy({**recipe("prodigy"), "safeguard_warmup": False})
    assert {group["safeguard_warmup"] for group in toy.optimizer.param_groups} == {False}


@effect("optimizer.min_8bit_size")
@pytest.mark.parametrize(("size", "kind"), [(4096, torch.uint8), (8192, torch.float32)])
def test_smaller_tensors_keep_32_bits(size: int, kind: torch.dtype) -> None:
    settings = {**recipe("adamw8bit"), "min_8bit_size": size}
    parameter = torch.nn.Parameter(torch.ones(64, 64))
    from loralab.app.optimizers import optimizer_maker

    optimizer = optimizer_maker(settings)([{"params": [parameter]}])
    parameter.grad = torch.ones(64, 64)
    optimizer.step()
    assert optimizer.state[parameter]["state1"].dtype == kind


@effect("optimizer.relative_step")
def test_a_relative_step_takes_no_rate_and_no_schedule(tiny: Tiny) -> None:
    choice = ("optimizer=adafactor_relative", "adapter.text_encoder.lr_scale=1")
    with pytest.raises(ConfigError, match=r"^optimizer\.lr is 0\.01, .*optimizer\.lr=null"):
        tiny.config(*choice, "optimizer.lr=0.01")
    with pytest.raises(ConfigError, match=r"^scheduler\.kind is cosine .*scheduler=constant"):
        tiny.config(*choice, "optimizer.lr=null", "scheduler=cosine")
    assert tiny.config(*choice, "optimizer.lr=null")


@effect("optimizer.d0")
def test_the_rate_that_was_found_is_logged(tiny: Tiny) -> None:
    run = tiny.run("optimizer=prodigy", "optimizer.lr=0.5", "optimizer.d0=1e-3",
                   "adapter.text_encoder.lr_scale=1", "logger=csv")  # fmt: skip
    found = run.column("learning_rate/unet_found")
    assert found[0] == pytest.approx(0.5 * 1e-3)
    assert run.column("learning_rate/unet") == [0.5] * 3

"""Recipes built for real at toy size, and the devices they ask for: wrong ones cost a second."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from loralab.app.models import training_device
from loralab.app.recipes import (
    build_recipe,
    check_arguments,
    recipe_arguments,
    recipe_target,
)
from loralab.config.records import RunConfig
from loralab.errors import Collector, ConfigError, Problem
from loralab.training.averaging import is_schedule_free

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
_TOY_TRAINER: dict[str, Any] = {
    "logger": False,
    "barebones": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "max_steps": -1,
    "max_epochs": 1,
}


def check_recipes(config: RunConfig) -> None:
    """Bind every recipe's arguments and build it at toy size.

    Raises:
        ConfigError: Every recipe that cannot be built, every device that is not there.
    """
    problems: list[Problem] = []
    collect = Collector(problems)
    collect(try_optimizer, config.optimizer, training_device(config))
    collect(_try_trainer, config.trainer)
    for name, recipe in config.callbacks.items():
        if recipe is not None:
            collect(_try_callback, f"callbacks.{name}", recipe)
    if problems:
        raise ConfigError(*problems)


def num_devices(config: RunConfig) -> int:
    """Return how many devices share the work; what is no such number is refused elsewhere."""
    devices = config.trainer.get("devices", 1)
    return devices if isinstance(devices, int) and devices > 0 else 1


def try_optimizer(recipe: dict[str, Any], device: torch.device) -> None:
    """Build the optimizer and take a step: some have no kernels for a device."""
    check_arguments("optimizer", recipe, given=1)
    parameter = torch.nn.Parameter(torch.ones(64, 64, device=device))  # 8 bits begin at 4096
    target = recipe_target("optimizer", recipe)
    groups = [{"params": [parameter], "name": "toy"}]
    build_recipe("optimizer", recipe, lambda arguments: target(groups, **arguments))
    optimizer = target(groups, **recipe_arguments(recipe))
    if is_schedule_free(optimizer):
        optimizer.train()
    parameter.grad = torch.ones_like(parameter)
    try:
        with warnings.catch_warnings():  # paged ones of bitsandbytes fall back to plain ones
            warnings.filterwarnings("error", message=".*not supported.*")
            optimizer.step()
    except Exception as error:  # libraries refuse with exceptions of their own
        reason = " ".join(str(error).split()).rstrip(".!") or type(error).__name__
        text = (
            f"optimizer._target_ is {recipe['_target_']}, which cannot take a step on the "
            f"{device.type}: {reason}; choose another one, such as optimizer=adamw."
        )
        raise ConfigError(Problem("optimizer._target_", text)) from error


def _try_trainer(recipe: dict[str, Any]) -> None:
    check_arguments("trainer", recipe)
    if problems := [*_precision_problems(recipe), *_device_problems(recipe)]:
        raise ConfigError(*problems)
    target = recipe_target("trainer", recipe)
    build_recipe("trainer", recipe, lambda arguments: target(**{**arguments, **_TOY_TRAINER}))


def _try_callback(key: str, recipe: Any) -> None:
    if not isinstance(recipe, dict):
        raise ConfigError(
            Problem(key, f"{key} is {recipe!r}; it must be a recipe with _target_, or null.")
        )
    check_arguments(key, recipe)
    build_recipe(key, recipe, lambda arguments: recipe_target(key, recipe)(**arguments))


def _precision_problems(recipe: dict[str, Any]) -> Iterator[Problem]:
    precision = recipe.get("precision", "32-true")
    if precision not in (*PRECISIONS, 32, "32"):
        yield Problem(
            "trainer.precision",
            f"trainer.precision is {precision}; it must be one of {', '.join(PRECISIONS)}. To keep "
            "the base in half precision set model.weight_dtype=bf16.",
        )
    elif precision == "16-mixed" and (recipe.get("accelerator") == "cpu" or not _has_gpu()):
        yield Problem(
            "trainer.precision",
            "trainer.precision is 16-mixed, which needs a GPU; use bf16-mixed or 32-true.",
        )


def _device_problems(recipe: dict[str, Any]) -> Iterator[Problem]:
    accelerator, devices = recipe.get("accelerator", "auto"), recipe.get("devices", 1)
    if accelerator in ("gpu", "cuda") and not _has_gpu():
        yield Problem(
            "trainer.accelerator",
            f"trainer.accelerator is {accelerator}, but torch finds no GPU; use trainer=cpu, or "
            "mend the driver.",
        )
    if (nodes := recipe.get("num_nodes", 1)) != 1:
        yield Problem(
            "trainer.num_nodes",
            f"trainer.num_nodes is {nodes!r}; a run stays on one machine: leave it out, or set it "
            "to 1.",
        )
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        yield Problem(
            "trainer.devices",
            f"trainer.devices is {devices!r}; it must be a whole number above 0: how many share "
            "the work. CUDA_VISIBLE_DEVICES says which.",
        )
        return
    present = _num_present(accelerator)
    if devices > present:
        yield Problem(
            "trainer.devices",
            f"trainer.devices is {devices}, but this machine has {present}; use {present} or less.",
        )


def _num_present(accelerator: str) -> int:
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.device_count()
    return os.cpu_count() or 1


def _has_gpu() -> bool:
    return torch.cuda.is_available()

"""The recipe of the optimizer and its groups: made for training, or as stand-ins for the plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loralab.app.adapters import PartPlan
from loralab.app.recipes import recipe_arguments, recipe_target
from loralab.config.choices import AdapterDtype
from loralab.config.optimizer_rules import finds_its_rate
from loralab.config.records import RunConfig
from loralab.training.optimizers import OWN_GROUP
from loralab.training.param_groups import group_parameters, in_order
from loralab.training.rounding import with_stochastic_rounding


@dataclass(frozen=True)
class Group:
    """A parameter group as the optimizer has it.

    Attributes:
        name: As TensorBoard has it: ``learning_rate/NAME``.
        part: Whose parameters it holds.
        role: What sets it apart from the rest of its part.
        num_tensors: Its parameters, counted as tensors.
        num_parameters: The same, counted as numbers.
        rate: Peak rate, or the multiple of one that is found; None where the optimizer has its own.
        weight_decay: None where the optimizer knows none.
    """

    name: str
    part: str
    role: str
    num_tensors: int
    num_parameters: int
    rate: float | None
    weight_decay: float | None


def planned_groups(config: RunConfig, parts: Mapping[str, PartPlan]) -> list[Group]:
    """Return the groups that the optimizer will have, without weights.

    The optimizer itself is asked, on parameters of as many dimensions and one element each.
    """
    groups, sizes, owners = [], dict[nn.Parameter, int](), dict[nn.Parameter, str]()
    for name in in_order(parts):
        part = parts[name]
        named = {path: [_stand_in(*item) for item in items] for path, items in part.shapes.items()}
        for path, shapes in part.shapes.items():
            for (_, stand_in), (_, shape) in zip(named[path], shapes, strict=True):
                sizes[stand_in], owners[stand_in] = math.prod(shape), name
        groups += group_parameters(name, named, part.learning_rate, part.rate_rules)
    has_rate = config.optimizer.get("lr") is not None
    return [
        Group(
            group["name"],
            owners[group["params"][0]],
            _role(group["name"].removeprefix(owners[group["params"][0]])),
            len(group["params"]),
            sum(sizes[member] for member in group["params"]),
            float(group["lr"]) if has_rate else None,
            group.get("weight_decay"),
        )
        for group in optimizer_maker(config.optimizer)(groups).param_groups
    ]


def _stand_in(name: str, shape: Sequence[int]) -> tuple[str, nn.Parameter]:
    return name, nn.Parameter(torch.ones([1] * len(shape)))


def describe_rate(config: RunConfig, group: Group) -> str:
    """Return a group's rate in words."""
    if group.rate is None:
        return "its own"
    return f"found × {group.rate:g}" if finds_its_rate(config) else f"{group.rate:g}"


def _role(rest: str) -> str:
    words = {"up": "second matrices (LoRA+)", "decay": "vectors", "no": "",
             OWN_GROUP.strip("_"): "no matrices, by AdamW"}  # fmt: skip
    texts = [
        f"modules at {word[1:]} × the rate" if word.startswith("x") else words[word]
        for word in rest.split("_")
        if word
    ]
    return ", ".join(text for text in texts if text) or "all others"


def rounding_seed(config: RunConfig) -> int | None:
    """Return the seed of the rounding of weights, or None where they are float32."""
    return None if config.adapter.weight_dtype is AdapterDtype.fp32 else config.seed


def optimizer_maker(
    recipe: dict[str, Any], *, rounding_seed: int | None = None
) -> Callable[[list[dict[str, Any]]], Any]:
    """Return what makes a recipe's optimizer from parameter groups.

    Args:
        recipe: The optimizer's.
        rounding_seed: For weights in bfloat16, which it rounds by chance; None for float32.
    """
    target, arguments = recipe_target("optimizer", recipe), recipe_arguments(recipe)
    if rounding_seed is not None:
        target = with_stochastic_rounding(target, seed=rounding_seed)
    return lambda groups: target(groups, **arguments)

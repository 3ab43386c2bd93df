"""A toy problem for optimizers, set up from the recipes of `conf/optimizer`."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from loralab.app.optimizers import optimizer_maker
from loralab.config.store import conf_dir
from loralab.training.averaging import is_schedule_free
from tests.config.conftest import composed

RECIPES = sorted(path.stem for path in (conf_dir() / "optimizer").glob("*.yaml"))
SHAPES = ((8, 6), (6, 8), (5,), (4, 3, 3, 3))  # of LoRA, of a magnitude, of a convolution


@functools.cache
def recipe(name: str) -> dict[str, Any]:
    """Return a recipe as a run has it."""
    content = OmegaConf.to_container(composed("~experiment", f"optimizer={name}")["optimizer"])
    assert isinstance(content, dict)
    return content


def tried(*values: str) -> Any:
    """Return a test's parameters, the first a recipe's name; pages of memory need a GPU."""
    marks = [pytest.mark.gpu] if "Paged" in recipe(values[0])["_target_"] else []
    return pytest.param(*values, marks=marks)


TRIED = [tried(name) for name in RECIPES]


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

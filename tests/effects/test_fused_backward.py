"""The step inside the backward pass: the same weights, and no gradient left."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest

from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import Tiny, changed

PLAIN = ("trainer.gradient_clip_val=null", "callbacks.dead_adapters=null", "logger=csv")


class Gradients(L.Callback):
    """Counts the gradients that are there after each backward pass."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_after_backward(self, trainer: L.Trainer, module: Any) -> None:
        self.counts.append(sum(p.grad is not None for p in module.parameters()))


@effect("fused_backward")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
def test_the_weights_are_those_of_plain_steps_bit_for_bit(tiny: Tiny, optimizer: str) -> None:
    choice = (*PLAIN, f"optimizer={optimizer}", "scheduler=linear")
    plain, fused = tiny.run(*choice), tiny.run(*choice, "fused_backward=true")
    assert changed(plain.adapter, fused.adapter) == []
    assert len(plain.column("train/gradient_norm")) == 3
    assert "train/gradient_norm" not in fused.rows()[0]


@effect("fused_backward")
@pytest.mark.parametrize(("word", "some"), [("true", False), ("false", True)])
def test_no_gradient_outlives_the_backward_pass(tiny: Tiny, word: str, some: bool) -> None:
    built, counter = tiny.build(*PLAIN, f"fused_backward={word}"), Gradients()
    built.job.trainer.callbacks.append(counter)  # type: ignore[attr-defined]
    built.fit()
    assert [count > 0 for count in counter.counts] == [some] * 3


@effect("fused_backward")
def test_all_that_needs_every_gradient_is_named(tiny: Tiny) -> None:
    with pytest.raises(ConfigError) as refusal:
        tiny.config("fused_backward=true", "trainer.accumulate_grad_batches=2",
                    "optimizer=lion")  # fmt: skip
    assert [problem.key for problem in refusal.value.problems] == [
        "optimizer._target_", "trainer.gradient_clip_val", "trainer.accumulate_grad_batches",
        "callbacks.dead_adapters",
    ]  # fmt: skip

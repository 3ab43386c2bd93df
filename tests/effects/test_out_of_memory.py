"""Memory that runs out in training: one sentence, the traceback in the log, and the way on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from loralab.app.exits import exit_codes
from loralab.app.logs import close_log
from loralab.app.run import run
from tests.effects.runs import NUM_STEPS, Tiny, changed

OPTIONS = ("callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep_last=9")


def on_the_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has")


def in_torch() -> None:
    torch.empty(1 << 55, dtype=torch.uint8)


def in_python() -> None:
    bytearray(1 << 60)


@contextmanager
def full_memory(fail: Callable[[], None], *, call: int) -> Iterator[None]:
    """Let the UNet's call of that number end in want of memory."""
    calls = 0

    def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
        nonlocal calls
        calls += isinstance(module, UNet2DConditionModel)
        if calls == call and isinstance(module, UNet2DConditionModel):
            fail()

    handle = register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def refusal(tiny: Tiny, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Run until memory is full, on a screen of its own; return the sentence."""
    raw = tiny.compose(*OPTIONS, *options)
    capsys.readouterr()
    try:
        with pytest.raises(SystemExit) as end, exit_codes():
            run(raw)
    finally:
        close_log()
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    heading, sentence = printed.out.splitlines()[-2:]
    assert heading == "The run stopped: one problem"
    return sentence


@pytest.mark.parametrize("fail", [on_the_gpu, in_torch, in_python])
def test_the_settings_that_spare_memory_are_named_in_order(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], fail: Callable[[], None]
) -> None:
    run_id = f"full-{fail.__name__}"
    with full_memory(fail, call=2):
        sentence = refusal(tiny, capsys, f"run_id={run_id}")
    folder = Path(tiny.root, "outputs", "tiny", run_id)
    remedies = [
        "data.batch_size below 2", "trainer.accumulate_grad_batches above 1",
        "model.gradient_checkpointing=true", "trainer.precision=bf16-mixed",
        "model.weight_dtype=bf16", "data.resolution below 64",
        f"run_id={run_id} resume=auto",
    ]  # fmt: skip
    places = [sentence.find(remedy) for remedy in remedies]
    assert -1 not in places, sentence
    assert places == sorted(places)
    assert f"in {fail.__name__}" in (folder / "train.log").read_text()
    assert "Traceback" in (folder / "train.log").read_text()


def test_what_is_spared_already_is_not_advised(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_memory(in_torch, call=1):
        sentence = refusal(
            tiny, capsys, "data.batch_size=1", "model.gradient_checkpointing=true",
            "trainer.precision=bf16-mixed", "model.weight_dtype=bf16",
        )  # fmt: skip
    for word in ("accumulate", "gradient_checkpointing", "precision", "weight_dtype"):
        assert word not in sentence
    assert "data.resolution below 64" in sentence


def test_the_run_goes_on_when_there_is_memory(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tiny.run(*OPTIONS)
    with full_memory(in_torch, call=3):
        refusal(tiny, capsys, "run_id=full")
    again = tiny.run_anew(*OPTIONS, "run_id=full", "resume=auto")
    assert again.state["steps"] == NUM_STEPS
    assert changed(whole.adapter, again.adapter) == []


def test_other_errors_stay_crashes(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise RuntimeError("a mistake of ours")

    with full_memory(fail, call=1), pytest.raises(SystemExit) as end, exit_codes():
        tiny.run_anew()
    assert end.value.code == 1
    assert "crashed: RuntimeError: a mistake of ours" in capsys.readouterr().err

"""Two processes on the CPU train the adapter that one process with accumulation trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.integration.artifacts import adapter, curves, last_checkpoint
from tests.integration.cli import Cli

RUN = ["run_id=a", "trainer.accelerator=cpu", "trainer.max_steps=6", "data.flip_probability=0.5",
       "data.captions.caption_dropout=0.2"]  # fmt: skip


def test_two_processes_equal_one_with_accumulation_of_two(
    cli: Cli, tiny: list[str], output: Path
) -> None:
    one = cli(*tiny, *RUN, "name=one", "trainer.accumulate_grad_batches=2")
    assert one.code == 0, one.text

    two = cli(*tiny, *RUN, "name=two", "trainer.devices=2", "+trainer.strategy=ddp")

    assert two.code == 0, two.text
    assert [path.name for path in (output / "two").iterdir()] == ["a"]
    for words in ("Plan of two", "step 6/6", "Done. The run is in"):
        assert two.text.count(words) == 1, two.text
    folders = output / "one" / "a", output / "two" / "a"
    largest = 0.0
    expected, found = (adapter(folder) for folder in folders)
    for key, tensor in expected.items():
        largest = max(largest, float((tensor.float() - found[key].float()).abs().max()))
    size = max(float(tensor.abs().max()) for key, tensor in expected.items() if "lora_up" in key)
    print(f"largest difference {largest:.2e} of {size:.2e}")
    states = [last_checkpoint(folder)["state_dict"] for folder in folders]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-6)
    ours, theirs = curves(folders[1]), curves(folders[0])
    for tag in (
        "train/loss",
        "train/gradient_norm",
        "val/loss",
        "val/loss_base",
        "val/loss_stderr",
    ):
        assert [step for step, _ in ours[tag]] == [step for step, _ in theirs[tag]]
        pairs = zip(ours[tag], theirs[tag], strict=True)
        assert all(abs(a - b) <= 1e-4 * abs(b) for (_, a), (_, b) in pairs), tag
    assert len(list(folders[1].glob("events.out.tfevents.*"))) == 1
    assert json.loads((folders[1] / "run.json").read_text())["state"] == "finished"


@pytest.mark.slow
def test_two_processes_do_not_wait_for_gradients_that_never_come(
    cli: Cli, tiny: list[str], output: Path
) -> None:
    """Layers behind the one that is read get none, a frozen part gets no more."""
    options = [
        *tiny, *RUN, "model.clip_skip=2", "adapter.text_encoder.enabled=true",
        "adapter.text_encoder.freeze_after_steps=3",
    ]  # fmt: skip
    one = cli(*options, "name=one", "trainer.accumulate_grad_batches=2")
    two = cli(*options, "name=two", "trainer.devices=2", "+trainer.strategy=ddp")
    assert (one.code, two.code) == (0, 0), one.text + two.text
    states = [last_checkpoint(output / name / "a")["state_dict"] for name in ("one", "two")]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-6)

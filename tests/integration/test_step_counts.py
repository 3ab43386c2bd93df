"""Steps, epochs and places in the data, counted by hand: whole runs and killed ones alike."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from loralab.training.callbacks.checkpoint import checkpoints
from tests.integration.artifacts import curves
from tests.integration.cli import Cli

pytestmark = pytest.mark.xdist_group("step_counts")

EPOCHS = 3
# 12 images in buckets of 5, 3 and 4 make 3 + 2 + 2 micro-batches of two an epoch; so many at a time
# are 7, 3 and 2 steps, the last of which is filled up.
STEPS_PER_EPOCH = {1: 7, 3: 3, 4: 2}
RUN = [
    "run_id=a",
    "optimizer=adamw",
    "trainer.max_steps=-1",
    f"trainer.max_epochs={EPOCHS}",
    "callbacks.checkpoint.every_n_steps=1",
    "callbacks.checkpoint.keep_last=null",
    "validation.every_n_steps=null",
]


def counts(path: Path) -> dict[str, object]:
    """Return all that a checkpoint counts."""
    content = torch.load(path, weights_only=True)
    loop = content["loops"]["fit_loop"]
    state = content["optimizer_states"][0]["state"].values()
    progress = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    return {
        "global_step": content["global_step"],
        "epoch": content["epoch"],
        "places": loop["state_dict"]["combined_loader"],
        "steps of Adam": {int(entry["step"]) for entry in state},
        "steps of the schedule": content["lr_schedulers"][0]["last_epoch"],
        "steps of Lightning": progress["step"]["total"]["completed"],
        "micro-batches": loop["epoch_loop.batch_progress"]["total"]["processed"],
    }


def worked_out(accumulation: int) -> list[dict[str, object]]:
    """Return what must be counted after each step."""
    expected = []
    for step in range(1, EPOCHS * STEPS_PER_EPOCH[accumulation] + 1):
        epoch, before = divmod(step - 1, STEPS_PER_EPOCH[accumulation])
        place = {"epoch": epoch, "position": (before + 1) * accumulation}
        expected.append(
            {
                "global_step": step,
                "epoch": epoch,
                "places": [place],
                "steps of Adam": {step},
                "steps of the schedule": step,
                "steps of Lightning": step,
                "micro-batches": step * accumulation,
            }
        )
    expected[-1]["epoch"] = EPOCHS  # saved when the epoch is over as well
    return expected


@pytest.mark.parametrize("accumulation", STEPS_PER_EPOCH)
@pytest.mark.parametrize(
    "killed_in",
    [pytest.param(None, id="whole"), pytest.param(1, id="killed", marks=pytest.mark.slow)],
)
def test_a_step_is_counted_once_in_all_places(
    cli: Cli, tiny: list[str], output: Path, accumulation: int, killed_in: int | None
) -> None:
    folder, steps = output / "smoke" / "a", STEPS_PER_EPOCH[accumulation]
    command = [*tiny, *RUN, f"trainer.accumulate_grad_batches={accumulation}"]
    if killed_in is not None:  # after the epoch's first step, which is no end of one
        process = cli.start(*command)
        last = folder / "checkpoints" / f"step-{killed_in * steps + 1:06d}.ckpt"
        process.wait_for(last.is_file)
        process.send(signal.SIGKILL)
        assert process.wait().code == -signal.SIGKILL

    outcome = cli(*command, "resume=auto")

    assert outcome.code == 0, outcome.text
    assert f"step {EPOCHS * steps}/{EPOCHS * steps}" in outcome.text
    assert ("continues from" in outcome.text) is (killed_in is not None)
    expected = worked_out(accumulation)
    assert [counts(path) for path in checkpoints(folder / "checkpoints")] == expected
    shown = [step for step, _ in curves(folder)["train/loss"]]
    assert shown == list(range(1, EPOCHS * steps + 1))

"""Training that begins at a smaller size."""

from __future__ import annotations

import pytest

from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import Tiny

# Buckets of 5, 3 and 4 images in batches of 2 are 7 steps an epoch; 28 steps are four epochs.
FOUR_EPOCHS = "trainer.max_steps=28"
HALF = "data.resolution_schedule=[0:32,0.5:64]"


@effect("data.resolution_schedule")
def test_later_epochs_are_trained_at_a_larger_resolution(tiny: Tiny) -> None:
    built = tiny.build(HALF, FOUR_EPOCHS)
    assert built.survey.steps_per_epoch == 7
    areas = {
        epoch: [batch["moments"].shape[-1] * batch["moments"].shape[-2] * 64
                for batch in built.epoch(epoch)]
        for epoch in (0, 1, 2, 3)
    }  # fmt: skip
    assert max(areas[0] + areas[1]) <= 40 * 40
    assert min(areas[2] + areas[3]) >= 48 * 48
    assert [len(areas[epoch]) for epoch in areas] == [7] * 4


@effect("data.resolution_schedule")
def test_a_schedule_of_the_runs_own_size_changes_no_bit(tiny: Tiny) -> None:
    plain, scheduled = tiny.run(), tiny.run("data.resolution_schedule=[0:64]")
    assert all((plain.adapter[name] == tensor).all() for name, tensor in scheduled.adapter.items())


@effect("data.resolution_schedule")
@pytest.mark.parametrize(
    ("phases", "sentence"),
    [
        ("[0:33]", "multiple of data.buckets.step"),
        ("[0:128]", "at most data.resolution"),
        ("[0.5:32]", "must begin at 0 and ascend"),
        ("[0:32,0.6:48,0.5:64]", "must begin at 0 and ascend"),
        ("[half]", "write SHARE:SIDE"),
        ("[0:32,1:64]", "write SHARE:SIDE"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(tiny: Tiny, phases: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.resolution_schedule") as refusal:
        tiny.config(f"data.resolution_schedule={phases}")
    assert sentence in str(refusal.value)

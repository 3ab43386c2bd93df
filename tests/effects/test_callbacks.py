"""What rides along: each recipe of `conf/callbacks/default.yaml`, its arguments, its absence."""

from __future__ import annotations

import re

import pytest

from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import Tiny, TinyRun

FOUR = "trainer.max_steps=4"


def lines(run: TinyRun) -> list[str]:
    """Return the steps that were printed, e.g. `2/4`."""
    return re.findall(r"^step (\d+/\d+) ", run.stdout, flags=re.MULTILINE)


@effect("callbacks.progress", "callbacks.progress.every_n_steps")
def test_progress_prints_a_line_at_its_cadence_and_at_the_end(tiny: Tiny) -> None:
    assert lines(tiny.run(FOUR, "callbacks.progress.every_n_steps=3")) == ["3/4", "4/4"]
    assert lines(tiny.run(FOUR, "callbacks.progress.every_n_steps=1")) == [
        "1/4", "2/4", "3/4", "4/4",
    ]  # fmt: skip
    assert lines(tiny.run(FOUR, "callbacks.progress=null")) == []


@effect("callbacks.statistics")
def test_without_statistics_no_training_figures_are_logged(tiny: Tiny) -> None:
    assert len(tiny.run("logger=csv").column("train/loss")) == 3
    run = tiny.run("logger=csv", "callbacks.statistics=null")
    assert not (run.folder / "metrics.csv").exists() or run.column("train/loss") == []
    assert run.state["state"] == "finished"


@effect("callbacks.checkpoint", "callbacks.checkpoint.every_n_steps")
@pytest.mark.parametrize(
    ("override", "steps"),
    [
        ("callbacks.checkpoint.every_n_steps=2", [2, 4]),
        ("callbacks.checkpoint.every_n_steps=3", [3, 4]),
        ("callbacks.checkpoint.every_n_steps=100", [4]),
        ("callbacks.checkpoint=null", []),
    ],
)
def test_checkpoints_keep_their_cadence_and_never_miss_the_end(
    tiny: Tiny, override: str, steps: list[int]
) -> None:
    assert tiny.run(FOUR, override).checkpoints == [f"step-{step:06d}.ckpt" for step in steps]


@effect("callbacks.checkpoint.keep_last")
@pytest.mark.parametrize(("keep", "steps"), [(1, [4]), (3, [2, 3, 4])])
def test_only_the_newest_checkpoints_are_kept(tiny: Tiny, keep: int, steps: list[int]) -> None:
    every = "callbacks.checkpoint.every_n_steps=1"
    run = tiny.run(FOUR, every, f"callbacks.checkpoint.keep_last={keep}")
    assert run.checkpoints == [f"step-{step:06d}.ckpt" for step in steps]


@effect("callbacks.checkpoint.keep_last")
def test_all_checkpoints_are_kept_when_none_is_to_go(tiny: Tiny) -> None:
    every = "callbacks.checkpoint.every_n_steps=1"
    run = tiny.run(FOUR, every, "callbacks.checkpoint.keep_last=null")
    assert run.checkpoints == [f"step-{step:06d}.ckpt" for step in (1, 2, 3, 4)]


@effect("callbacks.checkpoint.every_n_steps", "callbacks.progress.every_n_steps")
@pytest.mark.parametrize("name", ["checkpoint", "progress"])
def test_a_cadence_of_zero_is_refused(tiny: Tiny, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^callbacks\.{name}.*at least 1"):
        tiny.survey(f"callbacks.{name}.every_n_steps=0")


@effect("callbacks.gradient_noise", "callbacks.gradient_noise.window")
@pytest.mark.parametrize(("window", "steps"), [(2, [2, 4]), (3, [3])])
def test_the_noise_of_the_gradient_is_logged_after_every_window(
    tiny: Tiny, window: int, steps: list[int]
) -> None:
    run = tiny.run("callbacks=gradient_noise", f"callbacks.gradient_noise.window={window}",
                   "logger=csv", "trainer.max_steps=4")  # fmt: skip
    assert [int(row["step"]) for row in run.rows() if "gradient/noise" in row] == steps
    plain = tiny.run("callbacks=default", "logger=csv", "trainer.max_steps=4")
    assert not any("gradient/noise" in row for row in plain.rows())

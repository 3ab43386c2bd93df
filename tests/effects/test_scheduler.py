"""The rate of every step, taken where the optimizer takes it."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as L
import pytest
from PIL import Image, ImageColor

from loralab.data.line_chart import COLORS
from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import Tiny

LR = 0.01
FOUR = "trainer.max_steps=4"


class Rates(L.Callback):
    """Notes the UNet's rate just before each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any
    ) -> None:
        (unet,) = (group for group in optimizer.param_groups if group["name"] == "unet")
        self.seen.append(unet["lr"])


def multiples(tiny: Tiny, *overrides: str) -> list[float]:
    """Return the rate of each of four steps as a multiple of the peak."""
    built, rates = tiny.build(FOUR, *overrides), Rates()
    built.job.trainer.callbacks.append(rates)  # type: ignore[attr-defined]
    built.fit()
    return [rate / LR for rate in rates.seen]


@effect("scheduler.kind")
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4]),
        ("rex", [1, 6 / 7, 2 / 3, 2 / 5]),  # z / (1/2 + z/2) with z = 3/4, 1/2, 1/4
    ],
)
def test_rates_follow_the_curve(tiny: Tiny, kind: str, expected: list[float]) -> None:
    assert multiples(tiny, f"scheduler.kind={kind}") == pytest.approx(expected)


@effect("scheduler.warmup_steps", "scheduler.warmup_fraction")
@pytest.mark.parametrize("given", ["warmup_steps=2", "warmup_fraction=0.5"])
def test_warm_up_rises_from_zero_in_a_straight_line(tiny: Tiny, given: str) -> None:
    assert multiples(tiny, f"scheduler.{given}") == pytest.approx([0, 0.5, 1, 1])


@effect("scheduler.warmup_fraction")
def test_a_fraction_of_the_steps_is_rounded_down_and_is_one_at_least(tiny: Tiny) -> None:
    # sd-scripts: int(0.7 * 4) is 2, where rounding would give 3.
    assert tiny.survey(FOUR, "scheduler.warmup_fraction=0.7").warmup_steps == 2
    with pytest.raises(ConfigError, match=r"warmup_fraction is 0\.2, which is less than one of"):
        tiny.survey(FOUR, "scheduler.warmup_fraction=0.2")


@effect("scheduler.warmup_start_factor")
def test_warm_up_starts_at_its_factor(tiny: Tiny) -> None:
    given = ("scheduler.warmup_steps=2", "scheduler.warmup_start_factor=0.4")
    assert multiples(tiny, *given) == pytest.approx([0.4, 0.7, 1, 1])


@effect(
    "scheduler.num_cycles", "scheduler.power", "scheduler.end_factor", "scheduler.timescale",
    "scheduler.decay_fraction", "scheduler.start_factor", "scheduler.rise_fraction",
    "scheduler.step_size", "scheduler.gamma", "scheduler.milestones",
)  # fmt: skip
@pytest.mark.parametrize(
    ("kind", "own", "expected"),
    [
        ("cosine_with_restarts", "num_cycles=2", [1, 0.5, 1, 0.5]),
        ("cosine_with_restarts", "num_cycles=4", [1, 1, 1, 1]),
        ("cosine_with_min_lr", "end_factor=0.5", [1, None, 0.75, None]),
        ("cosine_with_min_lr", "end_factor=0.2", [1, None, 0.6, None]),
        ("polynomial", "power=1 end_factor=0", [1, 0.75, 0.5, 0.25]),
        ("polynomial", "power=2 end_factor=0", [1, 9 / 16, 1 / 4, 1 / 16]),
        ("polynomial", "power=1 end_factor=0.2", [1, 0.8, 0.6, 0.4]),
        ("inverse_sqrt", "timescale=1", [1, 1 / math.sqrt(2), 1 / math.sqrt(3), 0.5]),
        ("inverse_sqrt", "timescale=3", [1, None, None, 1 / math.sqrt(2)]),
        ("warmup_stable_decay", "decay_fraction=0.5 end_factor=0", [1, 1, 1, 0.5]),
        ("warmup_stable_decay", "decay_fraction=1 end_factor=0", [1, None, 0.5, None]),
        # Four updates: the peak is update number 0.5 * 4, counted from one; the last is the end.
        ("one_cycle", "rise_fraction=0.5 start_factor=0.2 end_factor=0", [0.2, 1, 0.5, 0]),
        ("one_cycle", "rise_fraction=0.5 start_factor=0.4 end_factor=0.1", [0.4, 1, 0.55, 0.1]),
        ("one_cycle", "rise_fraction=0.75 start_factor=0.2 end_factor=0", [0.2, 0.6, 1, 0]),
        ("step", "step_size=2 gamma=0.5", [1, 1, 0.5, 0.5]),
        ("step", "step_size=1 gamma=0.5", [1, 0.5, 0.25, 0.125]),
        ("step", "step_size=2 gamma=0.1", [1, 1, 0.1, 0.1]),
        ("exponential", "step_size=2 gamma=0.25", [1, 0.5, 0.25, 0.125]),
        ("multistep", "milestones=[1,3] gamma=0.5", [1, 0.5, 0.5, 0.25]),
        ("multistep", "milestones=[2] gamma=0.1", [1, 1, 0.1, 0.1]),
    ],
)
def test_options_of_a_schedule_shape_its_curve(
    tiny: Tiny, kind: str, own: str, expected: list[float | None]
) -> None:
    found = multiples(
        tiny, f"scheduler={kind}", *(f"scheduler.{setting}" for setting in own.split())
    )
    assert [rate for rate, value in zip(found, expected, strict=True) if value is not None] == (
        pytest.approx([value for value in expected if value is not None])
    )


@effect("scheduler.unit")
def test_lengths_count_steps_or_epochs(tiny: Tiny) -> None:
    epoch = tiny.survey("data.batch_size=12").steps_per_epoch
    assert epoch > 1
    given = ("data.batch_size=12", "scheduler=step", "scheduler.step_size=1",
             "scheduler.gamma=0.5", f"trainer.max_steps={2 * epoch}")  # fmt: skip
    built, rates = tiny.build(*given, "scheduler.unit=epochs"), Rates()
    built.job.trainer.callbacks.append(rates)  # type: ignore[attr-defined]
    built.fit()
    assert rates.seen == pytest.approx([LR] * epoch + [LR / 2] * epoch)
    assert multiples(tiny, "scheduler=step", "scheduler.step_size=1", "scheduler.gamma=0.5",
                     "scheduler.unit=steps") == pytest.approx([1, 0.5, 0.25, 0.125])  # fmt: skip


def test_milestones_are_steps_of_the_run_and_not_of_what_follows_warm_up(tiny: Tiny) -> None:
    given = ("scheduler=multistep", "scheduler.milestones=[3]", "scheduler.gamma=0.5")
    assert multiples(tiny, *given, "scheduler.warmup_steps=2") == pytest.approx([0, 0.5, 1, 0.5])
    with pytest.raises(ConfigError, match=r"scheduler\.milestones holds 1, which is inside the 2"):
        tiny.survey(FOUR, *given[:1], "scheduler.milestones=[1]", "scheduler.warmup_steps=2")


@effect("scheduler.patience", "scheduler.threshold")
@pytest.mark.parametrize(
    ("patience", "threshold", "expected"),
    [
        (0, 0, [1, 1, 1, 1]),  # the loss falls each time
        (0, 1, [1, 1, 0.5, 0.25]),  # and never by so much; known one update later
        (1, 1, [1, 1, 1, 0.5]),
    ],
)
def test_plateau_lowers_the_rate_when_validation_stalls(
    tiny: Tiny, patience: int, threshold: int, expected: list[float]
) -> None:
    found = multiples(
        tiny, "scheduler=plateau", "validation.fraction=0.3", "validation.every_n_steps=1",
        "optimizer.lr=0.01", f"scheduler.patience={patience}", f"scheduler.threshold={threshold}",
        "scheduler.end_factor=0.1",
    )  # fmt: skip
    assert found == pytest.approx(expected)


def test_plan_shows_the_curve_and_the_run_folder_holds_its_picture(tiny: Tiny) -> None:
    run = tiny.run(FOUR, "scheduler.kind=linear", "logger=csv")
    assert "█▆▅▃  first 1, last 0.25 of the peak" in run.stdout
    with Image.open(run.folder / "lr.png") as picture:
        assert picture.size == (800, 400)
        assert len(set(picture.get_flattened_data())) > 20


def test_the_logged_rate_is_the_one_that_was_used(tiny: Tiny) -> None:
    run = tiny.run(FOUR, "scheduler.kind=linear", "logger=csv")
    logged = run.column("learning_rate/unet")
    assert logged == pytest.approx([LR, 0.75 * LR, 0.5 * LR, 0.25 * LR])


@effect("scheduler.kind")
@pytest.mark.parametrize(("scale", "lines"), [(1.0, 1), (0.5, 2)])
def test_parts_of_one_rate_share_a_line_of_the_picture(
    tiny: Tiny, scale: float, lines: int
) -> None:
    built = tiny.build("scheduler.kind=linear", f"adapter.text_encoder.lr_scale={scale}")
    with Image.open(built.folder.path / "lr.png") as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20) or ()}
    found = [color for color in COLORS if ImageColor.getrgb(color) in colors]
    assert len(found) == lines

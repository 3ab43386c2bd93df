"""When validation happens, what it causes, and that a stopped run comes to the same conclusions."""

from __future__ import annotations

import logging
import os
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping as LightningStopping
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from loralab.data.dataset import Item
from loralab.training.callbacks.best import BestCheckpoint
from loralab.training.callbacks.checkpoint import Checkpoint, checkpoints
from loralab.training.callbacks.early_stopping import EarlyStopping, OverfitAlarm
from loralab.training.callbacks.export import Export
from loralab.training.callbacks.validation import Validation
from loralab.training.lr_schedules import make_lr_multiplier
from tests.training.test_callbacks import Memory

Make = Callable[..., Any]
STEPS = 40


def new_validation(every_n_steps: int | None = 2) -> Validation:
    return Validation(seed=11, strata=3, every_n_steps=every_n_steps)


class Interrupter(L.Callback):
    """Sends this process an interrupt while a step is under way."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGINT)


class Run:
    """A planted overfit: eight images are learnt at a high rate, four others are watched."""

    def __init__(self, fixtures: tuple[Make, Make, Make, list[Item]], folder: Path) -> None:
        self.fixtures = fixtures
        self.folder = folder

    def __call__(
        self,
        *,
        patience: int | None = None,
        min_improvement: float = 0.0,
        steps: int = STEPS,
        every_n_steps: int | None = 2,
        every_checkpoint: int = 2,
        extra: tuple[L.Callback, ...] = (),
        ckpt_path: Path | None = None,
        plateau: bool = False,
        accumulation: int = 1,
        logger: Logger | None = None,
    ) -> Any:
        make_module, make_data, make_trainer, items = self.fixtures
        validation, logger = new_validation(every_n_steps), logger or Memory()
        options: dict[str, Any] = {}
        if plateau:
            options["lr_multiplier"] = make_lr_multiplier(
                "plateau", total_steps=steps, losses_before=validation.losses_before, gamma=0.5,
                patience=0, threshold=0.0, end_factor=0.0,
            )  # fmt: skip
        module = make_module(random=False, optimizer=torch.optim.AdamW, rate=0.05, **options)
        callbacks: list[L.Callback] = [*extra, validation, BestCheckpoint(validation),
                                       OverfitAlarm(validation)]  # fmt: skip
        if patience is not None:
            callbacks.append(
                EarlyStopping(validation, patience=patience, min_improvement=min_improvement)
            )
        callbacks.append(Checkpoint(every_n_steps=every_checkpoint, keep_last=99))
        trainer = make_trainer(
            max_steps=steps,
            callbacks=callbacks,
            logger=logger,
            default_root_dir=str(self.folder),
            accumulate_grad_batches=accumulation,
        )
        data = make_data(
            items[4:], items[:4], probe_items=items[4:8], batch_size=4, accumulation=accumulation
        )
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        trainer.validation, trainer.memory, trainer.module = validation, logger, module
        return trainer


@pytest.fixture
def run(
    make_module: Make, make_data: Make, make_trainer: Make, items: list[Item], tmp_path: Path
) -> Run:
    return Run((make_module, make_data, make_trainer, items), tmp_path)


def losses(trainer: Any) -> list[tuple[int, float]]:
    """Return (step, val/loss) as the logger has them."""
    return [(step, figures["val/loss"]) for step, figures in trainer.memory.entries
            if "val/loss" in figures]  # fmt: skip


def stop_by_hand(history: list[Any], base: Any, *, patience: int, errors: float) -> int:
    """Return the step at which patience is over, from the errors of single images."""
    reference, waited = base.held_out.mean(1).tolist(), 0
    for entry in history:
        rows = entry.held_out.mean(1).tolist()
        gains = [old - new for old, new in zip(reference, rows, strict=True)]
        if statistics.fmean(gains) > errors * statistics.stdev(gains) / len(gains) ** 0.5:
            reference, waited = rows, 0
        else:
            waited += 1
        if waited == patience:
            return int(entry.step)
    raise AssertionError("patience is never over")


def same_weights(one: Any, other: Any) -> bool:
    ours, theirs = one.module.state_dict(), other.module.state_dict()
    return all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_figures_are_logged_at_the_step_they_follow(run: Run) -> None:
    trainer = run(steps=5, every_n_steps=2, accumulation=2)
    assert [step for step, _ in losses(trainer)] == [2, 4, 5]
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(losses(trainer)[-1][1])


def test_other_callbacks_hear_of_every_validation(run: Run) -> None:
    class Listener(L.Callback):
        def __init__(self) -> None:
            self.heard: list[tuple[int, float]] = []

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            loss = trainer.callback_metrics["val/loss"]
            self.heard.append((trainer.global_step, float(loss)))

    listener = Listener()
    trainer = run(steps=4, extra=(listener,))
    assert listener.heard == [(step, pytest.approx(loss)) for step, loss in losses(trainer)]
    assert [step for step, _ in listener.heard] == [2, 4]


@pytest.mark.parametrize(
    ("patience", "errors"),
    [pytest.param(2, 0.0, marks=pytest.mark.slow), pytest.param(3, 0.0, marks=pytest.mark.slow),
     (3, 1.0)],
)  # fmt: skip
def test_planted_overfit_stops_where_patience_is_over(
    run: Run, tmp_path: Path, patience: int, errors: float, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run()
    validation = whole.validation
    expected = stop_by_hand(validation.history, validation.base, patience=patience, errors=errors)
    assert patience * 2 <= expected < STEPS
    capsys.readouterr()

    run.folder = tmp_path / "stopped"
    stopped = run(patience=patience, min_improvement=errors)

    assert stopped.global_step == expected
    assert losses(stopped) == losses(whole)[: expected // 2]
    text = capsys.readouterr().out
    assert f"step {expected}: stopping early, {patience} validations without improvement" in text


@pytest.mark.slow
def test_resumed_run_stops_at_the_same_step_with_the_same_bits(run: Run, tmp_path: Path) -> None:
    whole = run(patience=3)
    end = whole.global_step
    assert 6 <= end < STEPS
    for step in (end - 4, end - 2, end):  # patience partly spent, and over
        run.folder = tmp_path / f"from-{step}"
        resumed = run(patience=3, ckpt_path=tmp_path / "checkpoints" / f"step-{step:06d}.ckpt")
        assert resumed.global_step == end
        assert same_weights(resumed, whole)
        assert [e.step for e in resumed.validation.history] == [
            e.step for e in whole.validation.history
        ]
        assert losses(resumed) == [pair for pair in losses(whole) if pair[0] > step]


def test_best_checkpoint_is_the_lowest_loss_and_the_only_one(run: Run, tmp_path: Path) -> None:
    trainer = run()
    step, _ = min(losses(trainer), key=lambda pair: pair[1])
    (path,) = checkpoints(tmp_path / "checkpoints", "best")
    assert path.name == f"best-{step:06d}.ckpt"
    assert step < STEPS
    best, same = (
        torch.load(tmp_path / "checkpoints" / f"{word}-{step:06d}.ckpt", weights_only=True)
        for word in ("best", "step")
    )
    assert all(torch.equal(best["state_dict"][key], same["state_dict"][key])
               for key in same["state_dict"])  # fmt: skip


@pytest.mark.slow
def test_run_continues_from_the_best_checkpoint_as_if_nothing_had_happened(
    run: Run, tmp_path: Path
) -> None:
    whole = run()
    (path,) = checkpoints(tmp_path / "checkpoints", "best")
    run.folder = tmp_path / "again"
    again = run(ckpt_path=path)
    assert same_weights(again, whole)
    assert losses(again) == losses(whole)[-len(losses(again)) :]
    assert len(again.validation.history) == len(whole.validation.history)


@pytest.mark.slow
def test_alarm_warns_once_an_episode_in_log_and_on_screen(
    run: Run, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="loralab"):
        trainer = run()
    entries = [pair for pair in trainer.memory.entries if "val/overfits" in pair[1]]
    expected, lowest, told = [], float("inf"), False
    for step, figures in entries:
        if figures["val/loss"] < lowest:
            lowest, told = figures["val/loss"], False
        if figures["val/overfits"] and not told:
            expected.append(step)
            told = True
    num_overfitting = sum(figures["val/overfits"] for _, figures in entries)
    assert 1 <= len(expected) < num_overfitting, "the plant overfits for longer than a moment"
    lines = [line for line in capsys.readouterr().out.splitlines() if "overfitting since" in line]
    assert [line.split(": warning: ")[0] for line in lines] == [f"step {n}" for n in expected]
    assert len(caplog.records) == len(lines)
    assert "lower optimizer.lr" in lines[0]


def test_checkpoint_of_a_step_holds_the_validation_of_that_step(run: Run, tmp_path: Path) -> None:
    run(steps=6, every_n_steps=3, every_checkpoint=3)
    for count, step in enumerate((3, 6), 1):
        path = tmp_path / "checkpoints" / f"step-{step:06d}.ckpt"
        state = torch.load(path, weights_only=True)["callbacks"]["Validation"]
        assert [entry["step"] for entry in state["history"]] == [3, 6][:count]


@pytest.mark.slow
def test_stopped_and_resumed_run_validates_each_step_once(run: Run, tmp_path: Path) -> None:
    whole = run(steps=8, every_n_steps=4, every_checkpoint=100)
    for step in (3, 4):  # between two validations, and where one is due
        run.folder = tmp_path / f"stopped-{step}"
        options = {"steps": 8, "every_n_steps": 4, "every_checkpoint": 100}
        stopped = run(extra=(Interrupter(step),), **options)
        assert stopped.global_step == step
        assert losses(stopped) == losses(whole)[: step // 4], "a validation that is due is made"
        (path,) = checkpoints(run.folder / "checkpoints")

        resumed = run(ckpt_path=path, **options)

        assert losses(stopped) + losses(resumed) == losses(whole)
        assert same_weights(resumed, whole)
        assert [p.name for p in checkpoints(run.folder / "checkpoints", "best")] == [
            p.name for p in checkpoints(tmp_path / "checkpoints", "best")
        ]


@pytest.mark.slow
def test_plateau_lowers_the_rate_after_a_validation_and_resumes_exactly(
    run: Run, tmp_path: Path
) -> None:
    class Rates(L.Callback):
        def __init__(self) -> None:
            self.seen: dict[int, float] = {}

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            self.seen[trainer.global_step] = optimizer.param_groups[0]["lr"]

    whole_rates, resumed_rates = Rates(), Rates()
    whole = run(plateau=True, steps=24, extra=(whole_rates,))
    multiplier, best, expected = 1.0, float("inf"), {}
    found = dict(losses(whole))
    for step in range(24):
        if step - 1 in found:  # the validation after step s is known to the second update after it
            multiplier *= 1.0 if found[step - 1] < best else 0.5
            best = min(best, found[step - 1])
        expected[step] = 0.05 * multiplier
    assert whole_rates.seen == pytest.approx(expected)
    assert len(set(expected.values())) >= 3

    run.folder = tmp_path / "resumed"
    path = tmp_path / "checkpoints" / "step-000012.ckpt"
    resumed = run(plateau=True, steps=24, extra=(resumed_rates,), ckpt_path=path)
    assert resumed_rates.seen == {step: rate for step, rate in whole_rates.seen.items()
                                  if step >= 12}  # fmt: skip
    assert same_weights(resumed, whole)


def test_run_that_stops_inside_an_epoch_exports_no_epoch(run: Run) -> None:
    written: list[str] = []
    export = Export(
        lambda ending, step: written.append(ending), every_n_steps=None, every_n_epochs=1
    )
    batches = run(steps=1).num_training_batches
    assert batches > 2
    run.folder = run.folder / "stopped"
    run(extra=(Interrupter(batches + 1), export))
    assert written == ["-epoch0001"]


@pytest.mark.slow
def test_alarm_is_a_text_in_tensorboard(run: Run, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="board")
    run(logger=logger)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    texts = [event.tensor_proto.string_val[0].decode()
             for event in events.Tensors("val/overfitting/text_summary")]  # fmt: skip
    assert texts[0].startswith("overfitting since step ")
    assert len(events.Scalars("val/loss_stderr")) == STEPS / 2


@pytest.mark.slow
def test_callbacks_of_lightning_may_watch_the_loss(run: Run) -> None:
    stopping = LightningStopping(monitor="val/loss", patience=2, mode="min")
    trainer = run(extra=(stopping,))
    assert trainer.global_step < STEPS
    assert stopping.wait_count == 2

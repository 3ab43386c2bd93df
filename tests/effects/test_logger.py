"""Where the numbers go."""

from __future__ import annotations

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from tests.effects.registry import effect
from tests.effects.runs import Tiny


@effect("logger.kind")
@pytest.mark.parametrize(
    ("kind", "events", "tables"), [("none", 0, 0), ("csv", 0, 1), ("tensorboard", 1, 0)]
)
def test_a_logger_writes_its_own_kind_of_file(
    tiny: Tiny, kind: str, events: int, tables: int
) -> None:
    folder = tiny.run(f"logger.kind={kind}").folder
    assert min(1, len(list(folder.glob("events.out.tfevents.*")))) == events
    assert len(list(folder.rglob("metrics.csv"))) == tables


@effect("logger.kind")
def test_a_continued_run_keeps_the_rows_before_its_checkpoint(tiny: Tiny) -> None:
    settings = ("logger.kind=csv", "trainer.max_steps=4", "callbacks.checkpoint.every_n_steps=2")
    run = tiny.run_anew(*settings)
    before = run.rows()
    path = run.folder / "checkpoints" / "step-000002.ckpt"
    continued = tiny.run_anew(*settings, f"resume={path}", f"run_id={run.folder.name}")
    assert [row["step"] for row in continued.rows()] == ["1", "2", "3", "4"]
    assert continued.rows()[:2] == before[:2]
    assert continued.column("train/loss") == run.column("train/loss")


@effect("logger.flush_seconds")
def test_flush_seconds_reaches_the_writer(tiny: Tiny) -> None:
    logger = tiny.build("logger.kind=tensorboard", "logger.flush_seconds=7").job.trainer.logger
    assert isinstance(logger, TensorBoardLogger)
    writer = logger.experiment
    assert writer.flush_secs == 7
    writer.close()

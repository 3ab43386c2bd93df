"""How a run ends that is stopped at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from loralab.app.folders import RunFolder
from loralab.app.lifecycle import train


class Impatient(L.Callback):
    """Presses Ctrl-C."""

    def on_train_batch_start(self, *args: Any) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def handler() -> Iterator[None]:
    """Lightning leaves the signal ignored."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.filterwarnings("ignore")
def test_a_second_interrupt_stays_one(tmp_path: Path, handler: None) -> None:
    trainer = L.Trainer(
        accelerator="cpu", callbacks=[Impatient()], logger=False, default_root_dir=tmp_path,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    job: Any = SimpleNamespace(trainer=trainer, module=BoringModel(), datamodule=None)
    with pytest.raises(KeyboardInterrupt):
        train(job, RunFolder(tmp_path))

"""Checkpoints of the adapter and everything needed to go on, at optimizer-step boundaries only."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as L

from loralab.errors import UserError
from loralab.files import put_in_place
from loralab.training.callbacks.early_stopping import has_ended
from loralab.training.callbacks.steps import StepCallback
from loralab.training.run_files import unwritable

PATTERN = re.compile(r"(?:step|best)-(\d+)\.ckpt")


class Checkpoint(StepCallback):
    """Saves every n optimizer steps, at the end, and when the run is asked to stop.

    The first Ctrl-C or SIGTERM finishes the step under way, saves and stops; a second one stops
    at once.
    """

    def __init__(self, every_n_steps: int = 100, keep_last: int | None = 2) -> None:
        """Keep the cadence.

        Args:
            every_n_steps: Optimizer steps between checkpoints.
            keep_last: Newest checkpoints to keep; None keeps all.
        """
        if every_n_steps < 1 or (keep_last is not None and keep_last < 1):
            raise ValueError(
                f"every_n_steps is {every_n_steps} and keep_last is {keep_last}; "
                "both must be at least 1"
            )
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.stop_requested = False
        self._saved_step = -1
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Listen for requests to stop; Lightning's own handlers come back afterwards."""
        super().on_train_start(trainer, module)
        self._saved_step = trainer.global_step
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._request_stop)

    def on_step_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save when it is time, or when the run was asked to stop.

        The end is saved by `on_train_end`, after its pictures: Lightning does nothing any more for
        a run that continues there.
        """
        trainer.should_stop |= stop_requested(trainer)
        if has_ended(trainer):
            return
        if trainer.global_step % self.every_n_steps == 0 or trainer.should_stop:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save the end of the run and stop listening."""
        self._stop_listening()
        if trainer.global_step != self._saved_step:
            self._save(trainer)

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        """Stop listening; nothing is saved in the middle of a step."""
        self._stop_listening()

    def _request_stop(self, number: int, frame: Any) -> None:
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        print("\nStopping after this step; press Ctrl-C again to stop at once.", flush=True)

    def _stop_listening(self) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)

    def _save(self, trainer: L.Trainer) -> None:
        path = save(trainer, "step")
        saved = checkpoints(path.parent)
        surplus = len(saved) - (self.keep_last or len(saved))
        for old in saved[: max(0, surplus)]:
            if trainer.is_global_zero:
                old.unlink()
        self._saved_step = trainer.global_step


def stop_requested(trainer: L.Trainer) -> bool:
    """Tell whether the run was asked to stop.

    Signals reach the processes of a run at different moments; all of them get the same answer.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    asked = any(item.stop_requested for item in callbacks if isinstance(item, Checkpoint))
    return bool(trainer.strategy.reduce_boolean_decision(asked, all=False))


def save(trainer: L.Trainer, word: str) -> Path:
    """Save the run as ``checkpoints/WORD-STEP.ckpt``, as a whole or not at all.

    Raises:
        UserError: The folder is full or not writable.
    """
    path = Path(trainer.default_root_dir) / "checkpoints"
    path = path / f"{word}-{trainer.global_step:06d}.ckpt"
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            put_in_place(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(unwritable(path, error)) from error
    return path


def checkpoints(folder: Path, word: str = "step") -> list[Path]:
    """Return the checkpoints of a folder, oldest step first, compared as numbers."""
    found = [path for path in folder.glob(f"{word}-*.ckpt") if PATTERN.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Return the optimizer step in a checkpoint's name."""
    match = PATTERN.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])

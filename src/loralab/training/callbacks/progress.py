"""A progress bar on a terminal, plain lines elsewhere: loss, images per second, time left."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from loralab.training.callbacks.statistics import Statistics
from loralab.training.callbacks.steps import StepCallback
from loralab.training.validation import describe_validation


class Progress(StepCallback):
    """Shows how far the run is."""

    def __init__(self, every_n_steps: int = 20) -> None:
        """Keep the cadence of plain lines, in optimizer steps."""
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be at least 1")
        self.every_n_steps = every_n_steps
        self._console = Console()
        self._bar: Bar | None = None
        self._started, self._first_step = 0.0, 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Open the bar."""
        super().on_train_start(trainer, module)
        self._started, self._first_step = 0.0, trainer.global_step
        if self._console.is_terminal and trainer.is_global_zero:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(),
                       TextColumn("{task.description}"))  # fmt: skip
            self._bar = Bar(*columns, console=self._console)
            self._bar.start()
            self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock with the first step: drawing the first previews is not training."""
        self._started = self._started or time.perf_counter()

    def on_step_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Move the bar, or print a line at the cadence."""
        step = trainer.global_step
        if not trainer.is_global_zero:
            return
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=step, description=self._figures(trainer))
        elif step % self.every_n_steps == 0 or step == trainer.max_steps:
            print(f"step {step}/{trainer.max_steps}  {self._figures(trainer)}", flush=True)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Say what validation found."""
        figures = trainer.callback_metrics
        if trainer.is_global_zero and "val/loss" in figures and not trainer.sanity_checking:
            told = describe_validation({name: float(figures[name]) for name in figures})
            text = f"step {trainer.global_step}: val/loss {told}"
            print(text, flush=True) if self._bar is None else self._console.print(text)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that what follows is readable."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _figures(self, trainer: L.Trainer) -> str:
        parts = []
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Statistics) and callback.loss is not None:
                parts.append(f"loss {callback.loss:.4f}")
                parts.append(f"{callback.images_per_second:.1f} images/s")
        done = trainer.global_step - self._first_step
        if done:
            seconds = (time.perf_counter() - self._started) / done
            parts.append(f"{clock(seconds * (trainer.max_steps - trainer.global_step))} left")
        return "  ".join(parts)


def clock(seconds: float) -> str:
    """Return a duration as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

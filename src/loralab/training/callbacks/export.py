"""Adapter files while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Collection

import lightning.pytorch as L

from loralab.training.callbacks.steps import StepCallback
from loralab.training.callbacks.validation import Validation
from loralab.training.validation import best_steps

BEST = "-best-step"  # begins the ending of files of the best validations


class Export(StepCallback):
    """Writes adapter files every n steps or epochs; the last file is written after training."""

    def __init__(
        self,
        write: Callable[[str, int], object],
        *,
        every_n_steps: int | None,
        every_n_epochs: int | None,
    ) -> None:
        """Keep the cadence.

        Args:
            write: Writes the files, given the ending of their names (`-step000100`) and the step.
            every_n_steps: Optimizer steps between files.
            every_n_epochs: Epochs between files.
        """
        self.write = write
        self.every_n_steps = every_n_steps
        self.every_n_epochs = every_n_epochs

    def on_step_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write after a step or epoch that is due, except the last, which gets the plain name."""
        step, epoch = trainer.global_step, trainer.current_epoch + 1
        if step >= trainer.max_steps or not trainer.is_global_zero:
            return
        if self.every_n_steps and step % self.every_n_steps == 0:
            self.write(f"-step{step:06d}", step)
        if self.every_n_epochs and trainer.is_last_batch and epoch % self.every_n_epochs == 0:
            self.write(f"-epoch{epoch:04d}", step)  # a window of micro-batches ends with its epoch


class BestExport(L.Callback):
    """Writes an adapter file after each validation that is among the best so far."""

    def __init__(
        self,
        write: Callable[[str, int], object],
        keep_only: Callable[[str, Collection[int]], object],
        validation: Validation,
        *,
        count: int,
    ) -> None:
        """Watch a validation's history, so that a resumed run keeps what a whole one does.

        Args:
            write: Writes the files, given the ending of their names and the step.
            keep_only: Deletes the files whose ending has this beginning and another step.
            validation: Stands earlier among the callbacks.
            count: How many to keep.
        """
        self.write = write
        self.keep_only = keep_only
        self.validation = validation
        self.count = count

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write if this one is among the best, then delete what no longer is."""
        if not trainer.is_global_zero:
            return
        steps = best_steps(self.validation.history, self.count)
        if trainer.global_step in steps:
            self.write(f"{BEST}{trainer.global_step:06d}", trainer.global_step)
        self.keep_only(BEST, steps)

"""Adapter files while training goes on."""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as L

from loralab.training.callbacks.steps import StepCallback


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
        """Write after a step that is due, except the last, which gets the plain name."""
        step = trainer.global_step
        if self.every_n_steps is None or step >= trainer.max_steps:
            return
        if step % self.every_n_steps == 0 and trainer.is_global_zero:
            self.write(f"-step{step:06d}", step)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write after an epoch that is due; a run that is stopped ends inside of one."""
        epoch = trainer.current_epoch + 1
        if self.every_n_epochs is None or trainer.global_step >= trainer.max_steps:
            return
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        if epoch % self.every_n_epochs == 0 and trainer.is_global_zero:
            self.write(f"-epoch{epoch:04d}", trainer.global_step)

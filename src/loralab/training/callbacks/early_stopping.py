"""The end of a run that no longer gains, and a warning when it begins to overfit."""

from __future__ import annotations

import logging

import lightning.pytorch as L
from lightning.pytorch.loggers import TensorBoardLogger

from loralab.training.callbacks.validation import Validation
from loralab.training.validation import (
    best,
    gain,
    gap,
    overfitting_begins,
    validations_in_vain,
)

_log = logging.getLogger("loralab")


class EarlyStopping(L.Callback):
    """Stops the run after so many validations in a row without improvement."""

    def __init__(self, validation: Validation, *, patience: int, min_improvement: float) -> None:
        """Keep the options.

        Args:
            validation: Whose history is watched; it stands earlier among the callbacks.
            patience: Validations without improvement that end the run.
            min_improvement: Gain that counts, in standard errors of the paired gain.
        """
        self.validation = validation
        self.patience = patience
        self.min_improvement = min_improvement

    @property
    def stops(self) -> bool:
        """Whether the history ends the run; nothing else is remembered."""
        base, history = self.validation.base, self.validation.history
        if base is None:
            return False
        waited = validations_in_vain(base, history, min_improvement=self.min_improvement)
        return waited >= self.patience

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Stop at once when the run was killed between its end and its export."""
        trainer.should_stop |= self.stops

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Stop when patience is over."""
        if not self.stops or trainer.global_step >= trainer.max_steps:
            return
        trainer.should_stop = True
        step, peak = trainer.global_step, best(self.validation.history).step
        tell(
            trainer,
            f"step {step}: stopping early, {self.patience} validations without improvement; "
            f"step {peak} was best",
        )


class OverfitAlarm(L.Callback):
    """Warns once when held-out images get worse and trained ones do not; a new best rearms it."""

    def __init__(self, validation: Validation) -> None:
        """Watch this validation's history; it stands earlier among the callbacks."""
        self.validation = validation

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Warn when the last validation is the first one that shows overfitting."""
        history = self.validation.history
        if not overfitting_begins(history):
            return
        peak, now = best(history), history[-1]
        text = (
            f"overfitting since step {peak.step}: the loss on held-out images has risen by "
            f"{-gain(peak.held_out, now.held_out).mean:.4f} and the gap to trained ones grown by "
            f"{gap(peak, now).mean:.4f}; stop here, or lower optimizer.lr or adapter.rank"
        )
        _log.warning("step %d: %s", trainer.global_step, text)
        tell(trainer, f"step {trainer.global_step}: warning: {text}")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("val/overfitting", text, trainer.global_step)


def has_ended(trainer: L.Trainer) -> bool:
    """Tell whether the run is at its end, its last step or an early one, and not just stopped."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    early = any(item.stops for item in callbacks if isinstance(item, EarlyStopping))
    return early or trainer.global_step >= trainer.max_steps


def tell(trainer: L.Trainer, text: str) -> None:
    """Print a line, once for all processes."""
    if trainer.is_global_zero:
        print(text, flush=True)

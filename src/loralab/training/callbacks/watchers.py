"""Validation and what it may cause, in the order of their doing."""

from __future__ import annotations

import lightning.pytorch as L

from loralab.training.callbacks.best import BestCheckpoint
from loralab.training.callbacks.early_stopping import EarlyStopping, OverfitAlarm
from loralab.training.callbacks.validation import Validation


def make_watchers(
    validation: Validation,
    *,
    keep_best: bool,
    has_probe: bool,
    patience: int | None,
    min_improvement: float,
) -> list[L.Callback]:
    """Return the callbacks; their place is before the one that saves checkpoints.

    Args:
        validation: Measures; the others watch its history.
        keep_best: Keep the checkpoint with the lowest loss.
        has_probe: Trained images are measured too, so overfitting can be told.
        patience: Validations without improvement that end the run; None never ends it.
        min_improvement: Gain that counts, in standard errors of the paired gain.
    """
    watchers: list[L.Callback] = [validation]
    if keep_best:
        watchers.append(BestCheckpoint(validation))
    if has_probe:
        watchers.append(OverfitAlarm(validation))
    if patience is not None:
        stopping = EarlyStopping(validation, patience=patience, min_improvement=min_improvement)
        watchers.append(stopping)
    return watchers

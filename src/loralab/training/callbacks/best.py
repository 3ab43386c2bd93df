"""The checkpoint with the lowest loss on held-out images, beside the newest ones."""

from __future__ import annotations

import lightning.pytorch as L

from loralab.training.callbacks.checkpoint import checkpoints, save
from loralab.training.callbacks.validation import Validation
from loralab.training.validation import best


class BestCheckpoint(L.Callback):
    """Keeps ``checkpoints/best-STEP.ckpt``; a run can be continued from it as from any other."""

    def __init__(self, validation: Validation) -> None:
        """Watch this validation's history; it stands earlier among the callbacks."""
        self.validation = validation

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save when the last validation is the best, then drop the one before."""
        if best(self.validation.history).step != trainer.global_step:
            return
        path = save(trainer, "best")
        for old in checkpoints(path.parent, "best"):
            if old != path and trainer.is_global_zero:
                old.unlink()

"""Keeps the account of every image and the receipts of the order, over resumes and ranks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

from loralab.data.account import Account, Tally
from loralab.training.run_files import write_text

FILE = "data.json"
_log = logging.getLogger("loralab")


class Accounting(L.Callback):
    """Notes every batch as training receives it.

    Ranks meet at checkpoints and at the ends of epochs; the account is whole then, and written to
    ``data.json`` in the run folder.
    """

    def __init__(self, account: Account) -> None:
        """Continue this account."""
        self.account = account
        self._tally = Tally()

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Take up what the data module had to leave out."""
        self.account.leave_out(trainer.datamodule.left_out)  # type: ignore[attr-defined]

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch; one process needs no meeting."""
        self._tally.add(batch)
        if trainer.world_size == 1:
            self._settle(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Tell the receipt of the epoch to the log."""
        self._settle(trainer)
        if self.account.receipts and trainer.is_global_zero:
            receipt = self.account.receipts[-1]
            _log.info(
                "epoch %d: order receipt %s over %d micro-batches",
                receipt.epoch, receipt.sha256, receipt.micro_batches,
            )  # fmt: skip

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the account."""
        self._settle(trainer)
        self._write(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the account into the checkpoint and beside it; all ranks come here."""
        self._settle(trainer)
        checkpoint["account"] = self.account.state_dict()
        self._write(trainer)

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with the account of the checkpoint."""
        self.account.load_state_dict(checkpoint["account"])

    def _settle(self, trainer: L.Trainer) -> None:
        """Add what every rank has handed out since the last time."""
        tallies = [self._tally] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(tallies, self._tally)
        self.account.add(tallies)
        self._tally = Tally()

    def _write(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            write_text(Path(trainer.default_root_dir) / FILE, self.account.as_json())

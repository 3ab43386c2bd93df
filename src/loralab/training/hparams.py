"""What ranks runs in TensorBoard's HPARAMS tab."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

METRICS = ("val/loss", "val/loss_base", "train/loss")


def declare_hparams(trainer: L.Trainer, settings: Mapping[str, bool | int | float | str]) -> None:
    """Tell TensorBoard the run's settings and which of its curves rank runs.

    Only the tags are declared: the tab then shows the latest value of each curve, and no made-up
    first value enters it.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            for summary in hparams(dict(settings), dict.fromkeys(METRICS, 0.0)):  # type: ignore[no-untyped-call]
                logger.experiment._get_file_writer().add_summary(summary)

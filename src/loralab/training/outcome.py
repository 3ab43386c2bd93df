"""Figures and pictures that are made after the last step."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor


def log_outcome(
    trainer: L.Trainer, figures: Mapping[str, float], pictures: Mapping[str, Tensor]
) -> None:
    """Give figures to every logger and pictures to TensorBoard, at the step reached.

    Args:
        trainer: Whose loggers are told.
        figures: By the name of their curve.
        pictures: (3, H, W) in [0, 1], by name.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(figures), step=trainer.global_step)
        if isinstance(logger, TensorBoardLogger):
            for name, picture in pictures.items():
                logger.experiment.add_image(name, picture, trainer.global_step)

"""What ranks runs in TensorBoard's HPARAMS tab."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import lightning.pytorch as L
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams

METRICS = ("val/loss", "val/loss_stderr", "val/improvement", "val/improvement_stderr",
           "val/best_loss", "val/best_step", "val/loss_base", "train/loss")  # fmt: skip


def declare_hparams(
    trainer: L.Trainer,
    settings: Mapping[str, bool | int | float | str],
    *,
    metrics: Sequence[str] = METRICS,
    featured: Collection[str] = (),
) -> None:
    """Tell TensorBoard the run's settings and which of its curves rank runs.

    Only the names of the curves are declared: the tab then shows the latest value of each, and no
    made-up first value enters it.

    Args:
        trainer: Whose loggers are told.
        settings: Flat settings by dotted key.
        metrics: Names of the curves.
        featured: Keys that were set by hand; TensorBoard shows these columns first.
    """
    experiment, start, _ = hparams(dict(settings), dict.fromkeys(metrics, 0.0))  # type: ignore[no-untyped-call]
    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in featured
    plugin.content = content.SerializeToString()
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            writer = logger.experiment._get_file_writer()
            writer.add_summary(experiment)
            writer.add_summary(start)

"""Start, train, finish: the phases of a run that touch the run folder."""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from loralab import __version__
from loralab.app.build import Job, build
from loralab.app.folders import STATE_FILE, RunFolder, read_state, write_text
from loralab.app.hparams import featured, flatten
from loralab.app.preflight import Survey
from loralab.app.processes import is_main_process
from loralab.app.report import show_cache, show_outcome
from loralab.config.parse import to_plain
from loralab.config.records import RunConfig
from loralab.training.hparams import declare_hparams

_DEFAULT_THREADS = torch.get_num_threads()  # a sweep's jobs share the process
_LIBRARIES = ("torch", "lightning", "diffusers", "transformers", "peft", "hydra-core")


def start(config: RunConfig, survey: Survey, folder: RunFolder) -> Job:
    """Load the weights, build the objects and note in `run.json` that the run is under way."""
    torch.set_num_threads(config.cpu_threads or _DEFAULT_THREADS)
    job = build(config, survey, folder)
    job.datamodule.report = show_cache
    if is_main_process():
        _note(
            folder.path,
            state="running",
            data_digest=survey.data_digest,
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            versions={name: version(name) for name in _LIBRARIES}
            | {"loralab": __version__, "python": platform.python_version()},
        )
        settings = flatten(to_plain(config))
        declare_hparams(job.trainer, settings, featured=featured(settings))
    return job


def train(job: Job, folder: RunFolder) -> None:
    """Fit, and validate the end if the cadence did not, or a resumed run has nothing left to do."""
    checkpoint = str(folder.checkpoint) if folder.checkpoint else None
    job.trainer.fit(job.module, job.datamodule, ckpt_path=checkpoint, weights_only=True)
    ended = job.trainer.global_step >= job.trainer.max_steps
    validated = job.module.validated_step == job.trainer.global_step
    if ended and job.datamodule.validation_set.items and not validated:
        job.trainer.validate(job.module, job.datamodule, verbose=False)


def finish(job: Job, config: RunConfig, folder: RunFolder) -> float | None:
    """Export, note the outcome and print it; a stopped run only says how to go on."""
    trainer = job.trainer
    if trainer.global_step < trainer.max_steps:
        if trainer.is_global_zero:
            print(f"Stopped at step {trainer.global_step} of {trainer.max_steps}. To continue:")
            print(f"  the same command with run_id={folder.path.name} resume=auto")
        return None
    figures = {key: float(value) for key, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        files = job.writer.write("", trainer.global_step)
        _note(folder.path, state="finished", steps=trainer.global_step, metrics=figures)
        show_outcome(config, folder.path, files, figures)
    for logger in trainer.loggers:
        logger.finalize("success")
    return figures.get(config.optimized_metric)


def _note(folder: Path, **facts: Any) -> None:
    state = {**read_state(folder), **facts}
    write_text(folder / STATE_FILE, json.dumps(state, indent=2) + "\n")

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
from loralab.app.captions import tag_counts, training_sources
from loralab.app.demo_quality import QUALITY_METRICS, measure_quality
from loralab.app.folders import IMAGES_FILE, STARTED, STATE_FILE, RunFolder, read_state
from loralab.app.hparams import featured, flatten
from loralab.app.metadata import image_counts, session_id
from loralab.app.preflight import Survey
from loralab.app.processes import is_main_process
from loralab.app.report import show_account, show_cache, show_outcome
from loralab.app.resume import resume_word
from loralab.app.schedule import draw_schedule
from loralab.config.parse import to_plain
from loralab.config.records import RunConfig
from loralab.config.validation_rules import RESULT_METRICS
from loralab.data.tags import tag_occurrence
from loralab.files import write_text
from loralab.training.callbacks.checkpoint import checkpoints
from loralab.training.callbacks.recording import FOLDER as RECORDING
from loralab.training.callbacks.recording import join_pieces
from loralab.training.hparams import METRICS, declare_hparams

_DEFAULT_THREADS = torch.get_num_threads()  # a sweep's jobs share the process
_LIBRARIES = ("torch", "lightning", "diffusers", "transformers", "peft", "hydra-core")


def start(config: RunConfig, survey: Survey, folder: RunFolder) -> Job:
    """Load the weights, build the objects and note in `run.json` that the run is under way."""
    torch.set_num_threads(config.cpu_threads or _DEFAULT_THREADS)
    job = build(config, survey, folder)
    job.datamodule.report = show_cache
    if is_main_process():
        survey.files.save()  # only now: a refused run leaves nothing behind
        _note(
            folder.path,
            state="running",
            data_digest=survey.data_digest,
            counts=image_counts(survey),
            session=session_id(folder.path),
            started=time.strftime(STARTED),
            versions={name: version(name) for name in _LIBRARIES}
            | {"loralab": __version__, "python": platform.python_version()},
        )
        if config.data.captions.tag_occurrence_file:
            counts = tag_counts(training_sources(survey.items))
            order = config.data.captions.tag_occurrence_order.name
            write_text(folder.path / "tags.txt", tag_occurrence(counts, order))
        write_text(folder.path / IMAGES_FILE, json.dumps(survey.fingerprints, indent=1) + "\n")
        draw_schedule(config, survey, folder.path)
        settings = flatten(to_plain(config))
        metrics = [*METRICS, *(QUALITY_METRICS if config.demo_quality else ())]
        metrics += RESULT_METRICS if config.result_metrics.clip_path is not None else ()
        declare_hparams(job.trainer, settings, metrics=metrics, featured=featured(settings))
    return job


def train(job: Job, folder: RunFolder) -> None:
    """Fit, from the checkpoint if there is one.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed again; Lightning makes an exit of it.
    """
    checkpoint = str(folder.checkpoint) if folder.checkpoint else None
    try:
        job.trainer.fit(job.module, job.datamodule, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as ending:
        raise KeyboardInterrupt from ending


def finish(job: Job, config: RunConfig, folder: RunFolder) -> float | None:
    """Export, note the outcome and print it; a stopped run only says how to go on."""
    trainer = job.trainer
    if not job.has_ended:
        if trainer.is_global_zero:
            print(f"Stopped at step {trainer.global_step} of {trainer.max_steps}. To continue:")
            print(f"  {how_to_continue(config, folder)}")
        return None
    figures = job.figures
    if trainer.is_global_zero:
        if config.record:
            join_pieces(folder.path / RECORDING)
        files = job.writer.write("", trainer.global_step)
        if config.validation.keep_best:
            (best,) = checkpoints(folder.path / "checkpoints", "best")
            files += job.writer.write_checkpoint(best, "-best")
        if config.demo_quality:
            figures |= measure_quality(job, config, folder.path)
        _note(folder.path, state="finished", steps=trainer.global_step, metrics=figures)
        show_outcome(config, folder.path, files, figures)
        show_account(job.account)
    for logger in trainer.loggers:
        logger.finalize("success")
    value = figures.get(config.optimized_metric)
    # Sweeps minimise, and of these more is better.
    return -value if value is not None and config.optimized_metric in RESULT_METRICS else value


def how_to_continue(config: RunConfig, folder: RunFolder) -> str:
    """Return what to type for the rest of a run."""
    if folder.path.parent == Path(config.output_dir) / config.name:
        return f"the same command with run_id={folder.path.name} resume=auto"
    return f"python train.py {resume_word(folder.path)}"


def _note(folder: Path, **facts: Any) -> None:
    state = {**read_state(folder), **facts}
    write_text(folder / STATE_FILE, json.dumps(state, indent=2) + "\n")

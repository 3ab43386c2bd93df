"""A run on recorded micro-batches: the same objects as a training, and no images."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from loralab import demo
from loralab.adapters.container import SUFFIXES
from loralab.adapters.export import verify_file, write_adapter
from loralab.app.adapters import part_plans
from loralab.app.build import bare_trainer, build_family, build_module
from loralab.app.callbacks import adapter_care
from loralab.app.models import check_model, model_place
from loralab.app.objective import check_objective
from loralab.app.preflight import Survey
from loralab.app.schedule import count_warmup_steps, schedule_problems
from loralab.app.toy_builds import check_recipes, num_devices
from loralab.config.choices import Reduction, Schedule
from loralab.config.parse import parse_config
from loralab.config.records import RunConfig
from loralab.data.batch import Batch
from loralab.data.file_index import FileIndex
from loralab.data.recording import Recording, read_recording, recorded_batches
from loralab.errors import Collector, ConfigError, Problem
from loralab.models.facts import model_facts
from loralab.models.registry import family_spec
from loralab.training.callbacks.recording import ReplayReport


def replay_run(raw: DictConfig, batches: Path, out: Path) -> None:
    """Train on the micro-batches of a file, in order, and write the adapter.

    Prints one JSON line for every micro-batch, and what else there is to say to stderr.

    Args:
        raw: Composed Hydra config; where images lie need not be given.
        batches: Recording.
        out: Adapter to write, in float32; its suffix chooses the container.

    Raises:
        UserError: Anything a user can mend; every problem at once.
    """
    if OmegaConf.is_missing(raw.data, "image_dir"):
        raw.data.image_dir = str(demo.images_dir("train"))  # no image is read
    config = parse_config(raw)
    problems = _impossible(config, out)
    recording = Collector(problems)(read_recording, batches)
    survey = _survey(config, recording, problems)
    if problems or recording is None or survey is None:
        raise ConfigError(*problems)
    if recording.unused:
        _say(f"Not used of {batches}: {', '.join(recording.unused)}.")
    torch.set_num_threads(config.cpu_threads or torch.get_num_threads())
    module = build_module(config, survey, build_family(config, survey))
    report = ReplayReport(recording.micro_batches, show=lambda line: print(line, flush=True))
    trainer = bare_trainer(
        config,
        max_steps=survey.total_steps,
        max_epochs=1,
        logger=False,
        callbacks=[*adapter_care(config, survey), report],
    )
    steps = recorded_batches(
        recording,
        accumulation=_accumulation(config),
        by_count=config.objective.reduction is Reduction.by_count,
        vae_factor=survey.facts.vae_factor,
    )
    # torch takes any sequence for a data set.
    loader = DataLoader[Batch](steps, batch_size=None, collate_fn=_as_it_is)  # type: ignore[arg-type]
    trainer.fit(module, loader)
    write_adapter(
        out,
        module.adapted,
        layout="kohya",
        dtype=torch.float32,
        metadata={},
        prefixes=survey.family.export_prefix,
    )
    verify_file(out, module.adapted)
    left = len(steps) - report.num_done
    if left:
        _say(f"trainer.max_steps is {survey.total_steps}, so {left} micro-batches were not used.")
    _say(report.verdict)


def _impossible(config: RunConfig, out: Path) -> list[Problem]:
    """Return what a replay cannot do although a run can."""
    problems = []
    if out.suffix not in SUFFIXES:
        text = f"--out is {out}; its name must end in one of {', '.join(SUFFIXES)}."
        problems.append(Problem("--out", text))
    if num_devices(config) > 1:
        text = f"trainer.devices is {num_devices(config)}; a replay uses one, trainer.devices=1."
        problems.append(Problem("trainer.devices", text))
    if config.scheduler.kind is Schedule.plateau:
        text = "scheduler.kind is plateau, which needs validation, and a replay has none; choose "
        text += "another schedule."
        problems.append(Problem("scheduler.kind", text))
    return problems


def _survey(
    config: RunConfig, recording: Recording | None, problems: list[Problem]
) -> Survey | None:
    """Return the plan of the replay; what is wrong is added to the problems."""
    collect, spec = Collector(problems), family_spec(config.model.family.name)
    facts = collect(model_facts, model_place(config), family=config.model.family.name)
    collect(check_model, config, facts)
    collect(check_recipes, config)
    collect(check_objective, config, facts)
    parts = collect(part_plans, config, spec) if facts is not None else None
    if recording is None or facts is None or parts is None:
        return None
    given = config.trainer.get("max_steps") or -1
    recorded_steps = -(-len(recording.micro_batches) // _accumulation(config))
    total_steps = given if given > 0 else recorded_steps
    warmup_steps = count_warmup_steps(config, total_steps)
    problems += schedule_problems(
        config,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        steps_per_epoch=recorded_steps,
    )
    problems += _misfits(recording, facts.latent_channels, facts.text[0].row_length, len(spec.text))
    return Survey(
        facts=facts,
        family=spec,
        items=(),
        validation_items=(),
        probe_items=(),
        rotation=None,
        parts=parts,
        steps_per_epoch=recorded_steps,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        data_digest="",
        fingerprints={},
        files=FileIndex(None),
        text_rows=recording.text_rows,
    )


def _misfits(
    recording: Recording, channels: int, row_length: int, num_encoders: int
) -> list[Problem]:
    """Return what of a recording the base cannot read."""
    first = recording.micro_batches[0]
    found, tokens = first["latents"].shape[1], first["input_ids"]
    problems = []
    if found != channels:
        text = f"--batches holds latents of {found} channels; this base has {channels}."
        problems.append(Problem("--batches", text))
    encoders = tokens.shape[1] if tokens.ndim == 4 else 1
    if tokens.shape[-1] != row_length or encoders != num_encoders:
        text = (
            f"--batches holds input_ids for {encoders} text encoders in rows of "
            f"{tokens.shape[-1]}; this base has {num_encoders} and reads rows of {row_length}."
        )
        problems.append(Problem("--batches", text))
    return problems


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _accumulation(config: RunConfig) -> int:
    return int(config.trainer.get("accumulate_grad_batches", 1))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

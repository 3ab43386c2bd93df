"""A run on recorded micro-batches: the same objects as a training, and no images."""

from __future__ import annotations

import sys
from itertools import chain
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
from loralab.app.objective import check_objective, chosen_schedule
from loralab.app.preflight import Survey
from loralab.app.schedule import count_warmup_steps, schedule_problems
from loralab.app.toy_builds import check_recipes, num_devices
from loralab.config.choices import Reduction, Schedule
from loralab.config.parse import parse_config
from loralab.config.records import RunConfig
from loralab.data.batch import Batch
from loralab.data.file_index import FileIndex
from loralab.data.recording import (
    Recording,
    read_recording,
    recorded_batches,
    recorded_epochs,
)
from loralab.errors import Collector, ConfigError, Problem
from loralab.models.facts import model_facts
from loralab.models.family import ModelFacts
from loralab.models.registry import family_spec
from loralab.training.callbacks.recording import ReplayReport
from loralab.training.module import LoRATrainingModule

Plan = list[list[list[int]]]


def replay_run(
    raw: DictConfig, batches: Path, out: Path, *, epoch_length: int | None = None
) -> None:
    """Train on the micro-batches of a file, in order, and write the adapter.

    Prints one JSON line for every micro-batch, and what else there is to say to stderr.

    Args:
        raw: Composed Hydra config; where images lie need not be given.
        batches: Recording.
        out: Adapter to write, in float32; its suffix chooses the container.
        epoch_length: Micro-batches of an epoch, at whose end a step is taken; None is all.

    Raises:
        UserError: Anything a user can mend; every problem at once.
    """
    if OmegaConf.is_missing(raw.data, "image_dir"):
        raw.data.image_dir = str(demo.images_dir("train"))  # no image is read
    config = parse_config(raw)
    problems = _impossible(config, out)
    recording = Collector(problems)(read_recording, batches)
    plan = _plan(config, recording, epoch_length)
    survey = _survey(config, recording, plan, problems)
    if problems or recording is None or survey is None:
        raise ConfigError(*problems)
    if recording.unused:
        _say(f"Not used of {batches}: {', '.join(recording.unused)}.")
    num_steps = sum(map(len, plan))
    if survey.total_steps > num_steps and config.scheduler.kind is not Schedule.constant:
        text = f"The schedule is {survey.total_steps} steps long, as trainer.max_steps says; the "
        _say(f"{text}recording ends after {num_steps}.")
    torch.set_num_threads(config.cpu_threads or torch.get_num_threads())
    module = build_module(config, survey, build_family(config, survey, recorded=True))
    report = ReplayReport(recording.micro_batches, show=lambda line: print(line, flush=True))
    _train(config, survey, recording, plan, module, report)
    with module.weights_for("export"):
        write_adapter(
            out,
            module.adapted,
            layout="kohya",
            dtype=torch.float32,
            metadata={},
            prefixes=survey.family.export_prefix,
        )
        verify_file(out, module.adapted)
    left = len(recording.micro_batches) - report.num_done
    if left:
        _say(f"trainer.max_steps is {survey.total_steps}, so {left} micro-batches were not used.")
    _say(report.verdict)


def _train(
    config: RunConfig,
    survey: Survey,
    recording: Recording,
    plan: Plan,
    module: LoRATrainingModule,
    report: ReplayReport,
) -> None:
    """Train the module on the recording, step by step as planned."""
    average = [module.average] if module.average else []
    trainer = bare_trainer(
        config,
        max_steps=survey.total_steps,
        max_epochs=1,
        logger=False,
        callbacks=[*adapter_care(config, survey), *average, report],
    )
    batches = recorded_batches(
        recording,
        list(chain(*plan)),
        accumulation=_accumulation(config),
        by_count=config.objective.reduction is Reduction.by_count,
        vae_factor=survey.facts.vae_factor,
    )
    # torch takes any sequence for a data set.
    loader = DataLoader[Batch](batches, batch_size=None, collate_fn=_as_it_is)  # type: ignore[arg-type]
    trainer.fit(module, loader)


def _plan(config: RunConfig, recording: Recording | None, epoch_length: int | None) -> Plan:
    """Return the numbers of the micro-batches of each step of each epoch."""
    if recording is None:
        return []
    accumulation = _accumulation(config)
    return recorded_epochs(recording, accumulation=accumulation, epoch_length=epoch_length)


def _impossible(config: RunConfig, out: Path) -> list[Problem]:
    """Return what a replay cannot do although a run can."""
    problems = []
    if out.suffix not in SUFFIXES:
        text = f"--out is {out}; its name must end in one of {', '.join(SUFFIXES)}."
        problems.append(Problem("--out", text))
    if num_devices(config) > 1:
        text = f"trainer.devices is {num_devices(config)}; a replay uses one, trainer.devices=1."
        problems.append(Problem("trainer.devices", text))
    if config.fused_backward:
        text = "fused_backward is true, so no step has a gradient norm to be told; set it to false."
        problems.append(Problem("fused_backward", text))
    if config.scheduler.kind is Schedule.plateau:
        text = "scheduler.kind is plateau, which needs validation, and a replay has none; choose "
        text += "another schedule."
        problems.append(Problem("scheduler.kind", text))
    return problems


def _survey(
    config: RunConfig, recording: Recording | None, plan: Plan, problems: list[Problem]
) -> Survey | None:
    """Return what the replay is built from; what is wrong is added to the problems."""
    collect, spec = Collector(problems), family_spec(config.model.family.name)
    place = model_place(config)
    facts = collect(model_facts, place, family=config.model.family.name, recorded=True)
    collect(check_model, config, facts)
    collect(check_recipes, config)
    collect(check_objective, config, facts)
    parts = collect(part_plans, config, spec) if facts is not None else None
    if recording is None or facts is None or parts is None:
        return None
    given = config.trainer.get("max_steps") or -1
    total_steps = given if given > 0 else sum(map(len, plan))
    warmup_steps = count_warmup_steps(config, total_steps)
    problems += schedule_problems(
        config,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        steps_per_epoch=len(plan[0]),
    )
    problems += _misfits(config, recording, facts)
    return Survey(
        facts=facts,
        family=spec,
        items=(),
        validation_items=(),
        probe_items=(),
        rotation=None,
        parts=parts,
        steps_per_epoch=len(plan[0]),
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        data_digest="",
        fingerprints={},
        files=FileIndex(None),
        text_rows=recording.text_rows,
    )


def _misfits(config: RunConfig, recording: Recording, facts: ModelFacts) -> list[Problem]:
    """Return what of a recording the base cannot read."""
    first = recording.micro_batches[0]
    channels, tokens = first["latents"].shape[1], first["input_ids"]
    texts = []
    if channels != facts.latent_channels:
        texts.append(f"latents of {channels} channels; this base has {facts.latent_channels}")
    encoders, row_length = tokens.shape[1] if tokens.ndim == 4 else 1, facts.text[0].row_length
    if tokens.shape[-1] != row_length or encoders != len(facts.text):
        texts.append(
            f"input_ids for {encoders} text encoders in rows of {tokens.shape[-1]}; this base has "
            f"{len(facts.text)} and reads rows of {row_length}"
        )
    num_timesteps = chosen_schedule(config, facts.schedule_config).get("num_train_timesteps", 1000)
    limits = {
        "input_ids": (min(text.vocab_size for text in facts.text), "tokens"),
        "timesteps": (num_timesteps, "timesteps"),
    }
    for name, (limit, word) in limits.items():
        largest = max(int(tensors[name].max()) for tensors in recording.micro_batches)
        if largest >= limit:
            texts.append(f"{name} up to {largest}; this base has {limit} {word}, from 0")
    return [Problem("--batches", f"--batches holds {text}.") for text in texts]


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _accumulation(config: RunConfig) -> int:
    return int(config.trainer.get("accumulate_grad_batches", 1))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

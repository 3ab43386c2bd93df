"""RunConfig and survey -> objects: the one translator between records and classes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from loralab.adapters.inject import inject
from loralab.app.export import AdapterWriter
from loralab.app.folders import RunFolder
from loralab.app.preflight import Survey
from loralab.app.processes import is_main_process
from loralab.app.recipes import recipe_arguments, recipe_target
from loralab.config.choices import LoggerKind, WeightDtype
from loralab.config.records import RunConfig
from loralab.data.captions import CaptionPipeline
from loralab.data.dataset import read_pixels
from loralab.data.latent_cache import LatentCache
from loralab.diffusion.objective import Objective
from loralab.diffusion.schedule import NoiseSchedule
from loralab.models.components import vae_digest
from loralab.models.family import ModelFamily
from loralab.models.registry import load_family
from loralab.training.callbacks.checkpoint import step_of
from loralab.training.callbacks.export import Export
from loralab.training.callbacks.preview import Preview, PreviewOptions
from loralab.training.datamodule import ImageTextDataModule, LoaderOptions
from loralab.training.lr_schedules import make_lr_multiplier
from loralab.training.module import LoRATrainingModule

DTYPES = {
    WeightDtype.fp32: torch.float32,
    WeightDtype.bf16: torch.bfloat16,
    WeightDtype.fp16: torch.float16,
}


@dataclass(frozen=True)
class Job:
    """The objects of one run."""

    module: LoRATrainingModule
    datamodule: ImageTextDataModule
    trainer: L.Trainer
    writer: AdapterWriter


def build(config: RunConfig, survey: Survey, folder: RunFolder) -> Job:
    """Load the weights, inject the adapters and put everything together."""
    family = build_family(config, survey)
    module = build_module(config, survey, family)
    datamodule = build_datamodule(config, survey, family)
    writer = AdapterWriter(config, survey, module, folder.path)
    return Job(module, datamodule, build_trainer(config, survey, folder, writer), writer)


def build_family(config: RunConfig, survey: Survey) -> ModelFamily:
    """Load the base and inject the adapters, seeded by the run's seed."""
    family = load_family(
        config.model.family.name,
        config.model.path,
        weight_dtype=DTYPES[config.model.weight_dtype],
        clip_skip=config.model.clip_skip,
        gradient_checkpointing=config.model.gradient_checkpointing,
    )
    for number, (name, part) in enumerate(survey.parts.items()):
        torch.manual_seed((config.seed * 1000 + number) % 2**63)
        inject(family.parts[name], part.spec, part=name)
    return family


def build_module(config: RunConfig, survey: Survey, family: ModelFamily) -> LoRATrainingModule:
    """Return the LightningModule around the base, with its objective."""
    prediction_type = config.model.prediction_type
    schedule = NoiseSchedule.from_config(
        family.schedule_config, prediction_type=prediction_type.name if prediction_type else None
    )
    family.schedule_config = {
        **family.schedule_config,
        "prediction_type": schedule.prediction_type,
    }
    objective = Objective(
        schedule,
        weighting=config.objective.weighting.name,
        min_snr_gamma=config.objective.min_snr_gamma,
        min_timestep=config.objective.min_timestep,
        max_timestep=config.objective.max_timestep,
    )
    module = LoRATrainingModule(
        family,
        objective,
        adapted=list(survey.parts),
        make_optimizer=_optimizer_maker(config.optimizer),
        lr_multiplier=make_lr_multiplier(
            config.scheduler.kind.name,
            total_steps=survey.total_steps,
            warmup_steps=survey.warmup_steps,
        ),
        learning_rates={name: part.learning_rate for name, part in survey.parts.items()},
        seed=config.seed,
        validation_seed=config.validation.seed,
        validation_strata=config.validation.strata,
    )
    return module.train()  # dropout and gradient checkpointing work in train mode only


def build_datamodule(config: RunConfig, survey: Survey, family: ModelFamily) -> ImageTextDataModule:
    """Return the data module over the surveyed images."""
    options, cache = config.data.captions, None
    if config.data.latent_cache.enabled:
        cache = LatentCache(
            Path(config.data.latent_cache.directory), vae_digest=vae_digest(config.model.path)
        )
    return ImageTextDataModule(
        survey.items,
        survey.validation_items,
        captions=CaptionPipeline(
            prefix=options.prefix,
            separator=options.separator,
            shuffle_tags=options.shuffle_tags,
            keep_tags=options.keep_tags,
            tag_dropout=options.tag_dropout,
            caption_dropout=options.caption_dropout,
        ),
        cache=cache,
        load_codec=family.load_codec,
        loading=LoaderOptions(
            batch_size=config.data.batch_size,
            accumulation=config.trainer.get("accumulate_grad_batches", 1),
            num_workers=config.data.num_workers,
        ),
        flip_probability=config.data.flip_probability,
        seed=config.seed,
    )


def build_trainer(
    config: RunConfig, survey: Survey, folder: RunFolder, writer: AdapterWriter
) -> L.Trainer:
    """Return the Trainer; steps of ours become micro-batches where Lightning counts those."""
    arguments = recipe_arguments(config.trainer)
    accumulation = arguments.get("accumulate_grad_batches", 1)
    never = survey.total_steps * accumulation + 1
    validate_every = config.validation.every_n_steps
    arguments |= {
        "max_steps": survey.total_steps,
        "max_epochs": -1,
        "val_check_interval": validate_every * accumulation if validate_every else never,
        "check_val_every_n_epoch": None,
        "limit_val_batches": 1.0 if survey.validation_items else 0,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": str(folder.path),
        "logger": build_logger(config, folder),
        "callbacks": [
            *(
                recipe_target(f"callbacks.{name}", recipe)(**recipe_arguments(recipe))
                for name, recipe in _statistics_first(config.callbacks)
            ),
            *build_outputs(config, survey, writer),
        ],
    }
    trainer: L.Trainer = recipe_target("trainer", config.trainer)(**arguments)
    return trainer


def build_logger(config: RunConfig, folder: RunFolder) -> Logger | bool:
    """Return the logger; its files lie in the run folder itself."""
    place: dict[str, Any] = {
        "save_dir": str(folder.path.parent),
        "name": "",
        "version": folder.path.name,
    }
    if config.logger.kind is LoggerKind.tensorboard:
        if folder.checkpoint is not None:  # what was logged beyond it will be logged again
            place["purge_step"] = step_of(folder.checkpoint) + 1
        return TensorBoardLogger(
            **place, default_hp_metric=False, flush_secs=config.logger.flush_seconds
        )
    if config.logger.kind is LoggerKind.csv:
        return _csv_logger(folder, **place)
    return False


def _csv_logger(folder: RunFolder, **place: Any) -> CSVLogger:
    """Return a logger that writes every row at once and keeps the rows up to the checkpoint."""
    path, kept = folder.path / "metrics.csv", []
    if folder.checkpoint is not None and path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            last = step_of(folder.checkpoint)
            kept = [row for row in csv.DictReader(file) if int(row["step"]) <= last]
    logger = CSVLogger(**place, flush_logs_every_n_steps=1)
    if kept and is_main_process():
        logger.experiment.metrics = kept  # Lightning 2.6 deletes the old file here
        logger.save()
    return logger


def build_outputs(config: RunConfig, survey: Survey, writer: AdapterWriter) -> list[L.Callback]:
    """Return the callbacks that make pictures and files."""
    outputs: list[L.Callback] = []
    if config.preview.prompts:
        side = config.model.native_resolution
        factor = survey.facts.bucket_step
        side = max(factor, side // factor * factor)
        options = PreviewOptions(
            prompts=tuple(config.preview.prompts),
            negative_prompt=config.preview.negative_prompt,
            num_steps=config.preview.steps,
            guidance_scale=config.preview.guidance_scale,
            seed=config.preview.seed,
            every_n_steps=config.preview.every_n_steps,
            size=(side, side),
        )
        chosen = survey.items[: len(options.prompts)]
        examples = [read_pixels(item, flipped=False) / 2 + 0.5 for item in chosen]
        outputs.append(Preview(options, examples=examples))
    if config.export.every_n_steps or config.export.every_n_epochs:
        outputs.append(
            Export(
                writer.write,
                every_n_steps=config.export.every_n_steps,
                every_n_epochs=config.export.every_n_epochs,
            )
        )
    return outputs


def _statistics_first(recipes: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Order callbacks so that a figure is taken before it is shown or saved."""
    present = [(name, recipe) for name, recipe in recipes.items() if recipe is not None]
    order = {"statistics": 0, "checkpoint": 2}
    return sorted(present, key=lambda entry: order.get(entry[0], 1))


def _optimizer_maker(recipe: dict[str, Any]) -> Callable[[list[dict[str, Any]]], Any]:
    target, arguments = recipe_target("optimizer", recipe), recipe_arguments(recipe)
    return lambda groups: target(groups, **arguments)

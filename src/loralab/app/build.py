"""RunConfig and survey -> objects: the one translator between records and classes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from loralab.app.adapters import inject_adapters
from loralab.app.callbacks import build_callbacks
from loralab.app.export import AdapterWriter
from loralab.app.folders import RunFolder
from loralab.app.models import DTYPES, fixed_sizes, model_place, training_device
from loralab.app.objective import build_objective, sampling_config
from loralab.app.optimizers import optimizer_maker, rounding_seed
from loralab.app.preflight import Survey
from loralab.app.processes import is_main_process
from loralab.app.recipes import recipe_arguments, recipe_target
from loralab.app.schedule import lr_multiplier, no_losses
from loralab.app.sizes import resolution_phases
from loralab.config.choices import LoggerKind, OnBadImage, Reduction
from loralab.config.parse import to_plain
from loralab.config.records import RunConfig
from loralab.data.account import Account
from loralab.models.family import ModelFamily
from loralab.models.registry import family_spec, load_family
from loralab.training.averaging import MovingAverage
from loralab.training.callbacks.checkpoint import step_of
from loralab.training.callbacks.early_stopping import has_ended
from loralab.training.callbacks.validation import Validation
from loralab.training.datamodule import ImageTextDataModule, LoaderOptions
from loralab.training.module import LoRATrainingModule


@dataclass(frozen=True)
class Job:
    """The objects of one run."""

    module: LoRATrainingModule
    datamodule: ImageTextDataModule
    trainer: L.Trainer
    writer: AdapterWriter
    validation: Validation | None
    account: Account

    @property
    def has_ended(self) -> bool:
        """Whether the run has reached its end, its last step or an early one."""
        return has_ended(self.trainer)

    @property
    def figures(self) -> dict[str, float]:
        """The latest figures of validation, and what callbacks have reported beside them."""
        reported = {key: float(value) for key, value in self.trainer.callback_metrics.items()}
        return reported | (self.validation.figures(self.module) if self.validation else {})


def build(config: RunConfig, survey: Survey, folder: RunFolder) -> Job:
    """Load the weights, inject the adapters and put everything together."""
    family = build_family(config, survey)
    validation = build_validation(config, survey)
    module = build_module(config, survey, family, validation)
    datamodule = build_datamodule(config, survey, family)
    account = Account(survey.items, held_out=survey.validation_items, skipped=survey.skipped)
    writer = AdapterWriter(config, survey, module, folder.path, account)
    trainer = build_trainer(config, survey, folder, writer, validation)
    return Job(module, datamodule, trainer, writer, validation, account)


def build_family(config: RunConfig, survey: Survey, *, recorded: bool = False) -> ModelFamily:
    """Load the base and inject the adapters, seeded by the run's seed.

    Args:
        recorded: The micro-batches are, so that neither images nor captions are read.
    """
    family = load_family(
        config.model.family.name,
        model_place(config),
        weight_dtype=DTYPES[config.model.weight_dtype],
        vae_dtype=DTYPES[config.model.vae_dtype],
        device=training_device(config),
        clip_skip=config.model.clip_skip,
        text_rows=survey.text_rows,
        prompt_weights=config.model.prompt_weights,
        attention=config.model.attention.name,
        fixed_sizes=fixed_sizes(config),
        gradient_checkpointing=config.model.gradient_checkpointing,
        recorded=recorded,
    )
    for encoder in family.conditioner.encoders:
        encoder.memory.limit_bytes = config.model.text_cache_mib * 2**20
    inject_adapters(config, survey.parts, family)
    return family


def build_validation(config: RunConfig, survey: Survey) -> Validation | None:
    """Return what measures the held-out images, or None when there are none."""
    if not survey.validation_items:
        return None
    return Validation(
        seed=config.validation.seed,
        strata=config.validation.strata,
        every_n_steps=config.validation.every_n_steps,
    )


def build_module(
    config: RunConfig, survey: Survey, family: ModelFamily, validation: Validation | None = None
) -> LoRATrainingModule:
    """Return the LightningModule around the base, with its objective."""
    objective = build_objective(config, family.schedule_config)
    family.schedule_config = sampling_config(config, objective.schedule, family.schedule_config)
    module = LoRATrainingModule(
        family,
        objective,
        adapted=list(survey.parts),
        make_optimizer=optimizer_maker(config.optimizer, rounding_seed=rounding_seed(config)),
        lr_multiplier=lr_multiplier(
            config, survey, losses_before=validation.losses_before if validation else no_losses
        ),
        learning_rates={name: part.learning_rate for name, part in survey.parts.items()},
        rate_rules={name: part.rate_rules for name, part in survey.parts.items()},
        seed=config.seed,
        posterior=config.data.latent_cache.posterior.name,
        average=build_average(config),
    )
    module.save_hyperparameters(to_plain(config), logger=False)  # for whoever continues the run
    return module.train()  # dropout and gradient checkpointing work in train mode only


def build_average(config: RunConfig) -> MovingAverage | None:
    """Return the moving average of the weights, or None."""
    ema = config.ema
    if not ema.enabled:
        return None
    return MovingAverage(
        decay=ema.decay,
        warmup=ema.warmup,
        start_step=ema.start_step,
        every_n_steps=ema.every_n_steps,
        use_for=[use.name for use in ema.use_for],
    )


def build_datamodule(config: RunConfig, survey: Survey, family: ModelFamily) -> ImageTextDataModule:
    """Return the data module over the surveyed images."""
    return ImageTextDataModule(
        survey.items,
        survey.validation_items,
        survey.probe_items,
        cache=survey.cache,
        load_codec=family.load_codec,
        loading=LoaderOptions(
            batch_size=config.data.batch_size,
            accumulation=config.trainer.get("accumulate_grad_batches", 1),
            num_workers=config.data.num_workers,
            persistent_workers=config.data.persistent_workers,
            prefetch_factor=config.data.prefetch_factor,
            shuffle=config.data.shuffle_data,
            skips_bad=config.data.on_bad_image is OnBadImage.skip,
            by_count=config.objective.reduction is Reduction.by_count,
        ),
        num_variants=config.data.latent_cache.variants,
        seed=config.seed,
        rotation=survey.rotation,
        phases=resolution_phases(config, survey.total_steps, survey.steps_per_epoch),
    )


def build_trainer(
    config: RunConfig,
    survey: Survey,
    folder: RunFolder,
    writer: AdapterWriter,
    validation: Validation | None = None,
) -> L.Trainer:
    """Return the Trainer with all that goes on beside training."""
    own: dict[str, Any] = {
        "max_steps": survey.total_steps,
        "default_root_dir": str(folder.path),
        "logger": build_logger(config, folder),
        "callbacks": build_callbacks(config, survey, writer, validation),
    }
    if _is_ddp(config.trainer) and _some_get_no_gradient(config, survey):
        own["strategy"] = "ddp_find_unused_parameters_true"
    return bare_trainer(config, **own)


def bare_trainer(config: RunConfig, **own: Any) -> L.Trainer:
    """Return the recipe's Trainer; Lightning's own validation and screen stay off."""
    arguments = {"devices": 1} | recipe_arguments(config.trainer)  # Lightning would take all GPUs
    arguments |= {
        "max_epochs": -1,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer: L.Trainer = recipe_target("trainer", config.trainer)(**(arguments | own))
    return trainer


def _is_ddp(trainer: Mapping[str, Any]) -> bool:
    several = trainer.get("devices", 1) > 1
    return several and trainer.get("strategy", "auto") in ("auto", "ddp")


def _some_get_no_gradient(config: RunConfig, survey: Survey) -> bool:
    """Tell whether processes must not wait for the gradient of every weight.

    A part that is frozen later gets none from then on, one whose rate is 0 never any; nor do the
    layers of a text encoder that lie behind the one that is read.
    """
    clip_skip = config.model.clip_skip or family_spec(config.model.family.name).clip_skip
    return any(
        part.freeze_after_steps is not None
        or part.learning_rate == 0
        or (name != "unet" and clip_skip > 1)
        for name, part in survey.parts.items()
    )


def build_logger(config: RunConfig, folder: RunFolder) -> Logger | bool:
    """Return the logger; its files lie in the run folder itself."""
    place: dict[str, Any] = {
        "save_dir": str(folder.path.parent),
        "name": "",
        "version": folder.path.name,
    }
    if config.logger.kind is LoggerKind.tensorboard:
        if folder.continued:  # what was logged beyond the checkpoint will be logged again
            place["purge_step"] = step_of(folder.checkpoint) + 1 if folder.checkpoint else 0
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

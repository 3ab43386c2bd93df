"""What goes on beside the training steps: callbacks, in the order of their doing."""

from __future__ import annotations

from itertools import islice

import lightning.pytorch as L

from loralab.app.export import AdapterWriter
from loralab.app.preflight import Survey
from loralab.app.recipes import recipe_arguments, recipe_target
from loralab.app.result_metrics import pictures_of, result_metrics
from loralab.config.choices import WeightNorm
from loralab.config.records import RunConfig
from loralab.training.callbacks.accounting import Accounting
from loralab.training.callbacks.adapter_care import Freezing, WeightNormLimit
from loralab.training.callbacks.export import BestExport, Export
from loralab.training.callbacks.fused_backward import FusedBackward
from loralab.training.callbacks.preview import Preview, PreviewOptions
from loralab.training.callbacks.recording import FOLDER as RECORDING
from loralab.training.callbacks.recording import Recorder
from loralab.training.callbacks.validation import Validation
from loralab.training.callbacks.watchers import make_watchers


def build_callbacks(
    config: RunConfig, survey: Survey, writer: AdapterWriter, validation: Validation | None
) -> list[L.Callback]:
    """Return all callbacks of a run; each sees what those before it have done."""
    return [
        Accounting(writer.account),
        *([FusedBackward()] if config.fused_backward else []),
        *adapter_care(config, survey),  # before anything is measured or saved
        *([writer.module.average] if writer.module.average else []),
        *([Recorder(writer.folder / RECORDING)] if config.record else []),
        *_chosen_callbacks(config, "statistics"),
        *_chosen_callbacks(config, None),
        *_watchers(config, validation),
        *build_outputs(config, survey, writer, validation),
        *_chosen_callbacks(config, "checkpoint"),
    ]


def _chosen_callbacks(config: RunConfig, which: str | None) -> list[L.Callback]:
    """Return the callback of one name, or all but those whose place matters.

    A figure is taken before it is shown, and a checkpoint is saved when all else is done: what a
    run that is killed leaves undone is done again by the one that continues it.
    """
    placed = ("statistics", "checkpoint")
    return [
        recipe_target(f"callbacks.{name}", recipe)(**recipe_arguments(recipe))
        for name, recipe in config.callbacks.items()
        if recipe is not None and (name == which if which else name not in placed)
    ]


def adapter_care(config: RunConfig, survey: Survey) -> list[L.Callback]:
    """Return what limits and freezes adapters while they are trained."""
    care: list[L.Callback] = []
    if config.adapter.weight_norm.type is not WeightNorm.none:
        limit = config.adapter.weight_norm
        care.append(WeightNormLimit(limit.type.name, limit.max))
    steps = {name: p.freeze_after_steps for name, p in survey.parts.items() if p.freeze_after_steps}
    idle = [name for name, part in survey.parts.items() if part.learning_rate == 0]
    if len(idle) < len(survey.parts):  # else nothing could be computed backward
        steps |= dict.fromkeys(idle, 0)  # their gradients would count when others are clipped
    if steps:
        care.append(Freezing(steps))
    return care


def _watchers(config: RunConfig, validation: Validation | None) -> list[L.Callback]:
    """Return validation and what it may cause, in the order of their doing."""
    if validation is None:
        return []
    options = config.validation
    return make_watchers(
        validation,
        keep_best=options.keep_best,
        has_probe=options.train_probe,
        patience=options.patience,
        min_improvement=options.min_improvement,
    )


def build_outputs(
    config: RunConfig, survey: Survey, writer: AdapterWriter, validation: Validation | None
) -> list[L.Callback]:
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
        own = (item for item in survey.items if not item.source.is_prior)
        examples = list(islice(pictures_of(config, own), len(options.prompts)))
        outputs.append(preview := Preview(options, examples=examples))
        outputs += result_metrics(config, survey, preview)
    if config.export.every_n_steps or config.export.every_n_epochs:
        outputs.append(
            Export(
                writer.write,
                every_n_steps=config.export.every_n_steps,
                every_n_epochs=config.export.every_n_epochs,
            )
        )
    if config.export.keep_best and validation is not None:
        count = config.export.keep_best
        outputs.append(BestExport(writer.write, writer.keep_only, validation, count=count))
    return outputs

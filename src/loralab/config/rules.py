"""Rules across fields: pure functions from a configuration to problems, cheap and without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from loralab import demo
from loralab.config.adapter_records import AdaptedPartRecord
from loralab.config.adapter_rules import ADAPTER_RULES
from loralab.config.caption_rules import CAPTION_RULES
from loralab.config.data_rules import DATA_RULES
from loralab.config.objective_rules import OBJECTIVE_RULES
from loralab.config.optimizer_rules import OPTIMIZER_RULES
from loralab.config.records import RunConfig
from loralab.config.schedule_rules import SCHEDULE_RULES
from loralab.config.settings_table import settings
from loralab.config.source_records import given_sources
from loralab.config.source_rules import SOURCE_RULES
from loralab.config.validation_rules import VALIDATION_RULES
from loralab.errors import Problem

# Words that select target layers; what they mean is a fact of each model family.
TARGET_PRESETS = ("attention", "attention_mlp", "sd_scripts", "full")


def check_rules(config: RunConfig) -> list[Problem]:
    """Return every broken rule; empty means the configuration makes sense."""
    return [problem for rule in RULES for problem in rule(config)]


def adapted_parts(config: RunConfig) -> dict[str, AdaptedPartRecord]:
    """Return the parts that get an adapter, by name."""
    parts = {"unet": config.adapter.unet, "text_encoder": config.adapter.text_encoder}
    return {name: part for name, part in parts.items() if part.enabled}


def _some_part_is_adapted(config: RunConfig) -> Iterator[Problem]:
    parts = adapted_parts(config)
    if not parts:
        yield Problem(
            "adapter",
            "adapter.unet.enabled and adapter.text_encoder.enabled are both false, so nothing "
            "would be trained; set one of them to true.",
        )
    for name, part in parts.items():
        if not part.targets:
            key = f"adapter.{name}.targets"
            yield Problem(key, f"{key} is empty; name layers or a preset, for example [attention].")


def _buckets_fit(config: RunConfig) -> Iterator[Problem]:
    buckets, resolution = config.data.buckets, config.data.resolution
    if buckets.step % 8:
        yield Problem(
            "data.buckets.step",
            f"data.buckets.step is {buckets.step}; it must be a multiple of 8. "
            f"Use {max(8, round(buckets.step / 8) * 8)}.",
        )
    elif resolution % buckets.step:
        yield Problem(
            "data.resolution",
            f"data.resolution is {resolution}; it must be a multiple of data.buckets.step "
            f"({buckets.step}). Use {max(1, round(resolution / buckets.step)) * buckets.step}.",
        )
    if not buckets.enabled or buckets.no_upscale or buckets.sizes:
        return
    if buckets.min_side > resolution:
        yield Problem(
            "data.buckets.min_side",
            f"data.buckets.min_side is {buckets.min_side}; it must not be above data.resolution "
            f"({resolution}).",
        )
    if buckets.max_side < resolution:
        yield Problem(
            "data.buckets.max_side",
            f"data.buckets.max_side is {buckets.max_side}; it must not be below data.resolution "
            f"({resolution}).",
        )


def _one_warmup(config: RunConfig) -> Iterator[Problem]:
    scheduler = config.scheduler
    if scheduler.warmup_steps and scheduler.warmup_fraction:
        yield Problem(
            "scheduler.warmup_steps",
            f"scheduler.warmup_steps is {scheduler.warmup_steps} and scheduler.warmup_fraction is "
            f"{scheduler.warmup_fraction:g}; give one of them and set the other to 0.",
        )


# Arguments of third-party recipes that we read ourselves: (key, least value, may be null, whole).
_RECIPE_NUMBERS = (
    ("optimizer.lr", 0.0, True, False),
    ("trainer.max_steps", -1, True, True),
    ("trainer.max_epochs", -1, True, True),
    ("trainer.accumulate_grad_batches", 1, False, True),
    ("trainer.log_every_n_steps", 1, False, True),
    ("trainer.gradient_clip_val", 0.0, True, False),
)


def _recipe_numbers(config: RunConfig) -> Iterator[Problem]:
    recipes = {"optimizer": config.optimizer, "trainer": config.trainer}
    for key, least, nullable, whole in _RECIPE_NUMBERS:
        group, _, name = key.partition(".")
        value = recipes[group].get(name, None if nullable else least)
        if value is None and nullable:
            continue
        kind = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind) or not least <= value < math.inf:
            what = "a whole number" if whole else "a finite number"
            null = " or null" if nullable else ""
            yield Problem(
                key, f"{key} is {value!r}; it must be {what} of at least {least:g}{null}."
            )


def _steps_or_epochs(config: RunConfig) -> Iterator[Problem]:
    steps = config.trainer.get("max_steps", -1)
    epochs = config.trainer.get("max_epochs")
    if isinstance(steps, str) or isinstance(epochs, str):
        return
    has_steps = steps is not None and steps > 0
    has_epochs = epochs is not None and epochs > 0
    if has_steps == has_epochs:
        texts = ["null" if value is None else str(value) for value in (steps, epochs)]
        found = f"trainer.max_steps is {texts[0]} and trainer.max_epochs is {texts[1]}"
        yield Problem(
            "trainer.max_steps",
            f"{found}; give one of them a number above 0 and leave the other -1 or null.",
        )
    elif has_steps and config.scheduler.warmup_steps >= steps:
        warmup = config.scheduler.warmup_steps
        yield Problem(
            "scheduler.warmup_steps",
            f"scheduler.warmup_steps is {warmup}; it must be below trainer.max_steps ({steps}).",
        )


def _fused_steps_are_not_clipped(config: RunConfig) -> Iterator[Problem]:
    clip, precision = config.trainer.get("gradient_clip_val"), config.trainer.get("precision")
    if config.optimizer.get("fused") and clip and str(precision).endswith("-mixed"):
        yield Problem(
            "optimizer.fused",
            f"optimizer.fused is true and trainer.precision is {precision}, which Lightning does "
            "not clip gradients with; set optimizer.fused=false or trainer.gradient_clip_val=null.",
        )


def _one_validation_source(config: RunConfig) -> Iterator[Problem]:
    validation = config.validation
    ways = {
        "validation.fraction": f"{validation.fraction:g}" if validation.fraction else None,
        "validation.folder": validation.folder,
        "validation.files": f"{len(validation.files)} files" if validation.files else None,
    }
    given = [(key, value) for key, value in ways.items() if value is not None]
    if len(given) > 1:
        found = " and ".join(f"{key} is {value}" for key, value in given)
        yield Problem(given[0][0], f"{found}; give one of them.")
    if validation.every_n_steps and not given:
        yield Problem(
            "validation.every_n_steps",
            f"validation.every_n_steps is {validation.every_n_steps}, but no image is held out; "
            "set validation.fraction, validation.folder or validation.files, or "
            "validation.every_n_steps=null.",
        )


def _demo_base_is_for_the_demo(config: RunConfig) -> Iterator[Problem]:
    if Path(config.model.path).resolve() != demo.base_dir() or config.model.allow_demo:
        return
    for key, images in image_folders(config):
        if demo.base_dir().parent in images.resolve().parents:
            continue
        yield Problem(
            "model.path",
            f"model.path is the demo base, which draws only small icons, but {key} is "
            f"{images}; choose a real base with model=sd15 model.path=FOLDER, or set "
            "model.allow_demo=true.",
        )


def image_folders(config: RunConfig) -> list[tuple[str, Path]]:
    """Return key and folder of every source of training images."""
    return [
        (f"{group}.image_dir", Path(source.image_dir))
        for group, source in given_sources(config.data).items()
    ]


def beside_the_demo(config: RunConfig) -> list[tuple[str, Path]]:
    """Return key and value of the base and the images that are not the embedded demo's."""
    folders = [("model.path", Path(config.model.path), demo.base_dir())]
    folders += [(*source, demo.images_dir("train")) for source in image_folders(config)]
    return [(key, path) for key, path, wanted in folders if path.resolve() != wanted.resolve()]


def _quality_is_that_of_the_demo(config: RunConfig) -> Iterator[Problem]:
    others = beside_the_demo(config)
    if config.demo_quality and others:
        found = " and ".join(f"{key} is {value}" for key, value in others)
        yield Problem(
            "demo_quality",
            f"demo_quality is {config.demo_quality}, but {found}; it judges drawings of the "
            "embedded demo only. Set demo_quality=0.",
        )


def _recordings_are_whole(config: RunConfig) -> Iterator[Problem]:
    if config.record and config.model.prompt_weights:
        yield Problem(
            "record",
            "record is true, but a recording holds no weights of words; set record=false, or "
            "model.prompt_weights=false.",
        )
    if config.record and config.fused_backward:
        yield Problem(
            "record",
            "record is true, but with fused_backward no gradient is left to record; set "
            "record=false, or fused_backward=false.",
        )
    if config.record and config.trainer.get("devices", 1) not in (1, "1"):
        yield Problem(
            "record",
            f"record is true, but trainer.devices is {config.trainer['devices']}; a recording is "
            "made on one device: set record=false, or trainer.devices=1.",
        )


def _templates_fill(config: RunConfig) -> Iterator[Problem]:
    template = config.export.name_template
    try:
        name = template.format(name="x", run_id="y", comment="z", kind="k", rank=1)
    except (KeyError, IndexError, ValueError):
        name = ""
    if not name or "/" in name or "\\" in name:
        yield Problem(
            "export.name_template",
            f"export.name_template is {template!r}; it must be a file name made of text, {{name}}, "
            "{run_id}, {comment}, {kind} and {rank}.",
        )
    for key, value in (("name", config.name), ("run_id", config.run_id)):
        if value is not None and (not value.strip(". ") or set(value) & set('/\\:*?"<>|')):
            yield Problem(
                key, f"{key} is {value!r}; it names a folder, so use letters, digits, - and _."
            )


def _kept_settings_are_settings(config: RunConfig) -> Iterator[Problem]:
    key = "compat.kept_settings"
    for name in config.compat.kept_settings:
        if name not in settings():
            yield Problem(key, f"{key} has {name}, which is none of the settings of settings.json.")


def _layouts_are_distinct(config: RunConfig) -> Iterator[Problem]:
    layouts = config.export.layouts
    if len(set(layouts)) < len(layouts):
        names = ", ".join(layout.name for layout in layouts)
        yield Problem("export.layouts", f"export.layouts is [{names}]; name each layout once.")


RULES: tuple[Callable[[RunConfig], Iterator[Problem]], ...] = (
    _some_part_is_adapted,
    *ADAPTER_RULES,
    _buckets_fit,
    *OBJECTIVE_RULES,
    _one_warmup,
    _recipe_numbers,
    _steps_or_epochs,
    _fused_steps_are_not_clipped,
    _one_validation_source,
    _demo_base_is_for_the_demo,
    _quality_is_that_of_the_demo,
    _recordings_are_whole,
    _templates_fill,
    _layouts_are_distinct,
    _kept_settings_are_settings,
    *SCHEDULE_RULES,
    *OPTIMIZER_RULES,
    *VALIDATION_RULES,
    *DATA_RULES,
    *SOURCE_RULES,
    *CAPTION_RULES,
)

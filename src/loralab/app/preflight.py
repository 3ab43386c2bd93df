"""Everything that can fail cheaply, before weights load; all problems together.

What is found on the way (images, buckets, steps, layers) is kept in a `Survey`: the plan that is
shown to the user and built from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from loralab.adapters.inject import count_parameters, match_targets
from loralab.adapters.spec import AdapterSpec
from loralab.app.folders import RunFolder, output_folder_problem
from loralab.app.recipes import build_recipe, check_arguments, recipe_target
from loralab.app.resume import checkpoint_problem, data_problem, resume_problems
from loralab.config.records import RunConfig
from loralab.config.rules import adapted_parts
from loralab.data.buckets import Bucket, make_buckets, square_bucket
from loralab.data.dataset import Item, make_items
from loralab.data.index import ImageRecord, scan_folder
from loralab.data.sampler import BucketBatchSampler
from loralab.errors import ConfigError, Problem, UserError
from loralab.models.components import skeletons
from loralab.models.facts import model_facts
from loralab.models.family import FamilySpec, ModelFacts
from loralab.models.registry import family_spec

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class PartPlan:
    """One adapted part: its adapter, its size, its rate."""

    spec: AdapterSpec
    num_modules: int
    num_parameters: int
    learning_rate: float


@dataclass(frozen=True)
class Survey:
    """What preflight found; enough to show the plan and to build the run."""

    facts: ModelFacts
    family: FamilySpec
    items: tuple[Item, ...]
    validation_items: tuple[Item, ...]
    parts: dict[str, PartPlan]
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    data_digest: str


def preflight(config: RunConfig, folder: RunFolder, *, is_sweep: bool = False) -> Survey:
    """Check the run against the world and return the survey.

    Args:
        config: The run.
        folder: Where it goes.
        is_sweep: It is one job of a multirun.

    Raises:
        ConfigError: Every problem found.
    """
    problems = resume_problems(config, folder)
    collect = _Collector(problems)
    facts = collect(model_facts, config.model.path, family=config.model.family.name)
    collect(_check_clip_skip, config, facts)
    buckets = collect(_buckets, config, facts)
    records = collect(scan_folder, Path(config.data.image_dir), key="data.image_dir",
                      caption_extension=config.data.caption_extension,
                      repeats=config.data.repeats)  # fmt: skip
    held_out = collect(_validation_folder, config)
    collect(_check_recipes, config)
    if is_sweep and num_devices(config) > 1:
        problems.append(_one_device(config))
    collect(_check_timesteps, config, facts)
    spec = family_spec(config.model.family.name)
    parts = collect(_part_plans, config, spec) if facts is not None else None
    if folder.checkpoint is not None and (damage := checkpoint_problem(folder.checkpoint)):
        problems.append(damage)
    if problem := output_folder_problem(folder.path, needed_bytes=_bytes_needed(config, parts)):
        problems.append(problem)
    if config.data.latent_cache.enabled:
        cache, key = Path(config.data.latent_cache.directory), "data.latent_cache.directory"
        if problem := output_folder_problem(cache, key=key, needed_bytes=2**20):
            problems.append(problem)
    if facts is None or buckets is None or records is None or held_out is None or parts is None:
        raise ConfigError(*problems)

    training, held_out = split(records, held_out, config.validation.fraction)
    if not training:
        problems.append(_nothing_left(config, len(records)))
        raise ConfigError(*problems)
    items, validation_items = make_items(training, buckets), make_items(held_out, buckets)
    digest = _data_digest(items, validation_items)
    if problem := data_problem(folder, digest):
        problems.append(problem)
    steps_per_epoch = _steps_per_epoch(config, items)
    total_steps = _total_steps(config, steps_per_epoch)
    warmup_steps = config.scheduler.warmup_steps or round(
        config.scheduler.warmup_fraction * total_steps
    )
    if warmup_steps >= total_steps:
        problems.append(
            Problem(
                "scheduler.warmup_steps",
                f"scheduler.warmup_steps is {warmup_steps}; it must be below the {total_steps} "
                "steps of the run.",
            )
        )
    if problems:
        raise ConfigError(*problems)
    return Survey(
        facts=facts,
        family=spec,
        items=tuple(items),
        validation_items=tuple(validation_items),
        parts=parts,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        data_digest=digest,
    )


def split(
    records: list[ImageRecord], held_out: list[ImageRecord], fraction: float
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Hold images out by their content, so that adding files moves none between the sets."""
    if not fraction:
        return records, held_out
    chosen = [r for r in records if int(r.digest[:8], 16) / 16**8 < fraction]
    chosen = chosen or [min(records, key=lambda record: record.digest)]
    digests = {record.digest for record in chosen}
    return [record for record in records if record.digest not in digests], chosen


class _Collector:
    """Calls a check and keeps the problems it raises."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems

    def __call__(self, check: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        try:
            return check(*args, **kwargs)
        except UserError as error:
            self.problems.extend(p for p in error.problems if p not in self.problems)
            return None


def _check_clip_skip(config: RunConfig, facts: ModelFacts | None) -> None:
    skip = config.model.clip_skip
    if facts is not None and skip > facts.num_text_layers:
        text = (
            f"model.clip_skip is {skip}; this text encoder has {facts.num_text_layers} layers, so "
            f"it must be between 1 and {facts.num_text_layers}."
        )
        raise ConfigError(Problem("model.clip_skip", text))


def _buckets(config: RunConfig, facts: ModelFacts | None) -> tuple[Bucket, ...]:
    options, area = config.data.buckets, config.data.resolution**2
    if facts is not None and options.step % facts.bucket_step:
        raise ConfigError(
            Problem(
                "data.buckets.step",
                f"data.buckets.step is {options.step}; for this base it must be a multiple of "
                f"{facts.bucket_step}. Use "
                f"{max(1, round(options.step / facts.bucket_step)) * facts.bucket_step}.",
            )
        )
    if not options.enabled:
        return (square_bucket(area=area, step=options.step),)
    return make_buckets(
        area=area, step=options.step, min_side=options.min_side, max_side=options.max_side
    )


def _check_timesteps(config: RunConfig, facts: ModelFacts | None) -> None:
    if facts is None:
        return
    num_timesteps = facts.schedule_config.get("num_train_timesteps", 1000)
    if config.objective.max_timestep > num_timesteps:
        text = (
            f"objective.max_timestep is {config.objective.max_timestep}; this base was made with "
            f"{num_timesteps} timesteps. Use {num_timesteps} or less."
        )
        raise ConfigError(Problem("objective.max_timestep", text))


def _validation_folder(config: RunConfig) -> list[ImageRecord]:
    if config.validation.folder is None:
        return []
    return scan_folder(
        Path(config.validation.folder),
        key="validation.folder",
        caption_extension=config.data.caption_extension,
    )


def _part_plans(config: RunConfig, family: FamilySpec) -> dict[str, PartPlan]:
    networks = skeletons(config.model.path)
    plans: dict[str, PartPlan] = {}
    problems: list[Problem] = []
    for name, part in adapted_parts(config).items():
        presets = family.targets[name]
        targets = [t for target in part.targets for t in presets.get(target, (target,))]
        rate = part.lr if part.lr is not None else part.lr_scale * config.optimizer.get("lr", 1.0)
        spec = AdapterSpec(
            kind=config.adapter.kind.name,
            rank=config.adapter.rank,
            alpha=config.adapter.alpha,
            dropout=config.adapter.dropout,
            targets=tuple(dict.fromkeys(targets)),
        )
        try:
            hits = match_targets(networks[name], spec.targets, part=name)
            size = count_parameters(networks[name], spec, part=name)
        except UserError as error:
            hint = f"; presets: {', '.join(presets)}."
            problems.extend(Problem(p.key, p.message.rstrip(".") + hint) for p in error.problems)
            continue
        modules = {module for found in hits.values() for module in found}
        plans[name] = PartPlan(spec, len(modules), size, rate)
    if problems:
        raise ConfigError(*problems)
    return plans


def _check_recipes(config: RunConfig) -> None:
    """Bind every recipe's arguments and build it at toy size."""
    problems: list[Problem] = []
    collect = _Collector(problems)
    collect(_try_optimizer, config.optimizer)
    collect(_try_trainer, config.trainer)
    for name, recipe in config.callbacks.items():
        if recipe is not None:
            collect(_try_callback, f"callbacks.{name}", recipe)
    if problems:
        raise ConfigError(*problems)


def _try_optimizer(recipe: dict[str, Any]) -> None:
    import torch

    check_arguments("optimizer", recipe, given=1)
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    target = recipe_target("optimizer", recipe)
    build_recipe("optimizer", recipe, lambda arguments: target([parameter], **arguments))


def _try_trainer(recipe: dict[str, Any]) -> None:
    check_arguments("trainer", recipe)
    if problems := [*_precision_problems(recipe), *_device_problems(recipe)]:
        raise ConfigError(*problems)
    target, quiet = recipe_target("trainer", recipe), {"logger": False, "barebones": False}
    quiet |= {"enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "max_steps": -1, "max_epochs": 1}
    build_recipe("trainer", recipe, lambda arguments: target(**{**arguments, **quiet}))


def _try_callback(key: str, recipe: Any) -> None:
    if not isinstance(recipe, dict):
        raise ConfigError(
            Problem(key, f"{key} is {recipe!r}; it must be a recipe with _target_, or null.")
        )
    check_arguments(key, recipe)
    build_recipe(key, recipe, lambda arguments: recipe_target(key, recipe)(**arguments))


PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def _precision_problems(recipe: dict[str, Any]) -> Iterator[Problem]:
    precision = recipe.get("precision", "32-true")
    if precision not in (*PRECISIONS, 32, "32"):
        yield Problem(
            "trainer.precision",
            f"trainer.precision is {precision}; it must be one of {', '.join(PRECISIONS)}. To keep "
            "the base in half precision set model.weight_dtype=bf16.",
        )
    elif precision == "16-mixed" and not _has_gpu():
        yield Problem(
            "trainer.precision",
            "trainer.precision is 16-mixed, which needs a GPU; use bf16-mixed or 32-true.",
        )


def _device_problems(recipe: dict[str, Any]) -> Iterator[Problem]:
    accelerator, devices = recipe.get("accelerator", "auto"), recipe.get("devices", 1)
    if accelerator in ("gpu", "cuda") and not _has_gpu():
        yield Problem(
            "trainer.accelerator",
            f"trainer.accelerator is {accelerator}, but torch finds no GPU; use trainer=cpu, or "
            "mend the driver.",
        )
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        yield Problem(
            "trainer.devices", f"trainer.devices is {devices!r}; it must be a whole number above 0."
        )
        return
    present = _num_present(accelerator)
    if devices > present:
        yield Problem(
            "trainer.devices",
            f"trainer.devices is {devices}, but this machine has {present}; use {present} or less.",
        )


def _num_present(accelerator: str) -> int:
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.device_count()
    return os.cpu_count() or 1


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _steps_per_epoch(config: RunConfig, items: list[Item]) -> int:
    accumulation = config.trainer.get("accumulate_grad_batches", 1)
    sampler = BucketBatchSampler(
        [item.bucket for item in items],
        [item.record.weight for item in items],
        batch_size=config.data.batch_size,
        accumulation=accumulation,
        seed=config.seed,
        world_size=num_devices(config),
    )
    return len(sampler) // int(accumulation)


def num_devices(config: RunConfig) -> int:
    """Return how many devices share the work, as far as the configuration says."""
    devices = config.trainer.get("devices", 1)
    return devices if isinstance(devices, int) and devices > 0 else 1


def _total_steps(config: RunConfig, steps_per_epoch: int) -> int:
    steps, epochs = config.trainer.get("max_steps", -1), config.trainer.get("max_epochs")
    if steps is not None and steps > 0:
        return int(steps)
    assert epochs is not None, "the rules demand steps or epochs"
    return int(epochs * steps_per_epoch)


def _bytes_needed(config: RunConfig, parts: dict[str, PartPlan] | None) -> int:
    """Estimate the disk a run takes: checkpoints hold weights and two optimizer moments."""
    parameters = sum(part.num_parameters for part in (parts or {}).values())
    return 4 * parameters * (3 * 3 + len(config.export.layouts)) + 8 * 2**20


def _one_device(config: RunConfig) -> Problem:
    return Problem(
        "trainer.devices",
        f"trainer.devices is {num_devices(config)}; a job of a sweep uses one device. Set "
        "trainer.devices=1, or run the settings one by one.",
    )


def _nothing_left(config: RunConfig, count: int) -> Problem:
    fraction = config.validation.fraction
    return Problem(
        "validation.fraction",
        f"validation.fraction is {fraction:g}, which holds out all {count} images; lower it.",
    )


def _data_digest(items: list[Item], validation_items: list[Item]) -> str:
    digest = hashlib.sha256()
    for group in (items, validation_items):
        for line in sorted(f"{item.key}\0{item.record.caption}" for item in group):
            digest.update(line.encode())
        digest.update(b"\1")
    return digest.hexdigest()

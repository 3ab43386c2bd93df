"""Everything that can fail cheaply, before weights load; all problems together.

What is found on the way (images, buckets, steps, layers) is kept in a `Survey`: the plan that is
shown to the user and built from.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from loralab.adapters.inject import count_parameters, match_targets
from loralab.adapters.spec import AdapterSpec
from loralab.app.folders import RunFolder, output_folder_problem
from loralab.app.resume import checkpoint_problem, data_problem, resume_problems
from loralab.app.toy_builds import check_recipes, num_devices
from loralab.config.records import RunConfig
from loralab.config.rules import adapted_parts
from loralab.data.buckets import Bucket, make_buckets, square_bucket
from loralab.data.dataset import Item, make_items
from loralab.data.index import ImageRecord, scan_folder
from loralab.data.sampler import BucketBatchSampler
from loralab.errors import Collector, ConfigError, Problem, UserError
from loralab.models.components import skeletons
from loralab.models.facts import model_facts
from loralab.models.family import FamilySpec, ModelFacts
from loralab.models.registry import family_spec


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
    collect = Collector(problems)
    facts = collect(model_facts, config.model.path, family=config.model.family.name)
    collect(_check_clip_skip, config, facts)
    buckets = collect(_buckets, config, facts)
    records = collect(scan_folder, Path(config.data.image_dir), key="data.image_dir",
                      caption_extension=config.data.caption_extension,
                      repeats=config.data.repeats)  # fmt: skip
    held_out = collect(_validation_folder, config)
    collect(check_recipes, config)
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

"""Everything that can fail cheaply, before weights load; all problems together.

What is found on the way (images, buckets, steps, layers) is kept in a `Survey`: the plan that is
shown to the user and built from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from loralab.app.adapters import PartPlan, part_plans
from loralab.app.caching import FOLDER_KEY, cache_dir, check_room, open_latent_cache
from loralab.app.caption_lengths import FittedCaptions, fit_captions
from loralab.app.folders import RunFolder, output_folder_problem
from loralab.app.held_out import choose_probe, held_out_problems, measured_once
from loralab.app.images import Images, size_images
from loralab.app.masks import with_masks
from loralab.app.models import check_model, model_place
from loralab.app.objective import check_objective
from loralab.app.result_metrics import check_result_metrics
from loralab.app.resume import checkpoint_problem, data_problem, resume_problems
from loralab.app.schedule import count_warmup_steps, schedule_problems
from loralab.app.sizes import image_fit, resolution_phases
from loralab.app.sources import read_sources
from loralab.app.toy_builds import check_recipes, num_devices
from loralab.config.records import RunConfig
from loralab.data.dataset import Item
from loralab.data.file_index import FileIndex
from loralab.data.latent_cache import LatentCache
from loralab.data.prior import Rotation
from loralab.data.sampler import BucketBatchSampler
from loralab.errors import Collector, ConfigError, Problem
from loralab.models.facts import model_facts
from loralab.models.family import FamilySpec, ModelFacts
from loralab.models.registry import family_spec


@dataclass(frozen=True)
class Survey:
    """What preflight found; enough to show the plan and to build the run."""

    facts: ModelFacts
    family: FamilySpec
    items: tuple[Item, ...]
    validation_items: tuple[Item, ...]
    probe_items: tuple[Item, ...]
    rotation: Rotation | None
    parts: dict[str, PartPlan]
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    data_digest: str
    fingerprints: dict[str, str]
    files: FileIndex
    cache: LatentCache | None = None
    text_rows: int = 1
    caption_note: str = ""
    skipped: tuple[Problem, ...] = ()
    odd: tuple[Problem, ...] = ()
    cut_prompts: tuple[str, ...] = ()


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
    spec = family_spec(config.model.family.name)
    facts = collect(model_facts, model_place(config), family=config.model.family.name)
    collect(check_model, config, facts)
    collect(check_recipes, config)
    collect(check_objective, config, facts)
    cut_prompts = collect(check_result_metrics, config)
    parts = collect(part_plans, config, spec) if facts is not None else None
    if is_sweep and num_devices(config) > 1:
        problems.append(_one_device(config))
    problems += _folder_problems(config, folder, parts)
    shown = _look_at_images(config, spec, facts, collect)
    if facts is None or parts is None or shown is None:
        raise ConfigError(*problems)
    captions, images = shown
    if problem := data_problem(folder, images):
        problems.append(problem)
    length = _length(config, images)
    problems += schedule_problems(config, **asdict(length))
    measured = measured_once(images.held_out)
    problems += held_out_problems(config, measured)
    probe = choose_probe(images.training, len(measured) * config.validation.train_probe)
    cache = collect(open_latent_cache, config)
    if cache is not None:
        phases = resolution_phases(config, length.total_steps, length.steps_per_epoch)
        collect(check_room, config, cache, images.training, (*measured, *probe), facts, phases)
    if problems:
        raise ConfigError(*problems)
    return Survey(
        facts=facts,
        family=spec,
        items=images.training,
        validation_items=measured,
        probe_items=probe,
        rotation=images.rotation,
        parts=parts,
        **asdict(length),
        data_digest=images.digest,
        fingerprints=images.fingerprints,
        files=captions.sources.files,
        cache=cache,
        text_rows=captions.rows,
        caption_note=captions.note,
        skipped=images.skipped,
        odd=images.odd,
        cut_prompts=cut_prompts or (),
    )


def _look_at_images(
    config: RunConfig, spec: FamilySpec, facts: ModelFacts | None, collect: Collector
) -> tuple[FittedCaptions, Images] | None:
    """Read, caption and size the images; None when a problem stands in the way.

    Raises:
        ConfigError: No image is left that could be checked on.
    """
    fit = collect(image_fit, config, facts)
    sources = collect(read_sources, config)
    if sources is None:
        return None
    captions = images = None
    if facts is not None:
        sources = with_masks(config, sources, facts)
    collect.problems += sources.problems
    if sources.problems and not any(source.records for source in sources.training):
        raise ConfigError(*collect.problems)
    if facts is not None:
        captions = collect(fit_captions, config, sources, spec, facts)
    if fit is not None:
        images = collect(size_images, config, captions.sources if captions else sources, fit)
    if captions is None or images is None or sources.problems:
        return None
    return captions, images


def _folder_problems(
    config: RunConfig, folder: RunFolder, parts: dict[str, PartPlan] | None
) -> Iterator[Problem]:
    """Yield what is wrong with the places that are read from and written to."""
    if folder.checkpoint is not None and (damage := checkpoint_problem(folder.checkpoint)):
        yield damage
    if problem := output_folder_problem(folder.path, needed_bytes=_bytes_needed(config, parts)):
        yield problem
    place = cache_dir(config)
    if place is not None and not place.exists():
        problem = output_folder_problem(place, key=FOLDER_KEY, needed_bytes=2**20)
        if problem:
            yield problem


@dataclass(frozen=True)
class _Length:
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int


def _length(config: RunConfig, images: Images) -> _Length:
    steps_per_epoch = _steps_per_epoch(config, images)
    total_steps = _total_steps(config, steps_per_epoch)
    return _Length(steps_per_epoch, total_steps, count_warmup_steps(config, total_steps))


def _steps_per_epoch(config: RunConfig, images: Images) -> int:
    accumulation = config.trainer.get("accumulate_grad_batches", 1)
    sampler = BucketBatchSampler(
        [item.bucket for item in images.training],
        [item.record.weight for item in images.training],
        batch_size=config.data.batch_size,
        accumulation=accumulation,
        seed=config.seed,
        world_size=num_devices(config),
        rotation=images.rotation,
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

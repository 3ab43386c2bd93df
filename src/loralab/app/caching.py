"""Configuration -> latent cache and index of files, and whether there is room for the latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loralab.app.folders import output_folder_problem
from loralab.app.models import model_place
from loralab.config.choices import CacheStorage, WeightDtype
from loralab.config.records import RunConfig
from loralab.data.cache_folder import INDEX_FILE
from loralab.data.dataset import BucketedDataset, Item, ValidationDataset
from loralab.data.file_index import FileIndex
from loralab.data.latent_cache import LatentCache
from loralab.data.resolution import Phase
from loralab.errors import DataError, Problem
from loralab.models.components import vae_digest
from loralab.models.family import ModelFacts
from loralab.models.specs import family_spec

FOLDER_KEY, LIMIT_KEY = "data.latent_cache.directory", "data.latent_cache.size_limit"


def cache_dir(config: RunConfig) -> Path | None:
    """Return the folder of the latent cache, or None when nothing is kept on disk."""
    options = config.data.latent_cache
    on_disk = options.enabled and options.storage is CacheStorage.disk
    return Path(options.directory) if on_disk else None


def open_file_index(config: RunConfig) -> FileIndex:
    """Return what earlier starts know of image files; it lies in the latent cache."""
    folder = cache_dir(config)
    return FileIndex(folder / INDEX_FILE if folder is not None else None)


def _vae_identity(config: RunConfig) -> str:
    """Return what tells VAEs apart: files, and the dtype they compute in."""
    digest = vae_digest(model_place(config), family_spec(config.model.family.name))
    exact = config.model.vae_dtype is WeightDtype.fp32
    return digest if exact else f"{digest}-{config.model.vae_dtype.name}"


def open_latent_cache(config: RunConfig) -> LatentCache | None:
    """Return the latent cache, if there is to be one.

    Raises:
        ModelError: When the VAE's files are not there.
    """
    options = config.data.latent_cache
    if not options.enabled:
        return None
    return LatentCache(
        cache_dir(config),
        vae_digest=_vae_identity(config),
        vae_dtype=config.model.vae_dtype.name,
        precision=options.precision.name,
    )


def check_room(
    config: RunConfig,
    cache: LatentCache,
    training: Sequence[Item],
    measured_items: Sequence[Item],
    facts: ModelFacts,
    phases: Sequence[Phase],
) -> None:
    """Refuse, before anything is encoded, latents that the limit or the disk has no room for.

    A folder that lacks nothing need not be writable.

    Raises:
        DataError: When they do not fit.
    """
    options = config.data.latent_cache
    trained = BucketedDataset(
        training, cache=cache, seed=config.seed, num_variants=options.variants, phases=phases
    )
    measured = ValidationDataset(measured_items, cache=cache)
    needed = cache.bytes_needed(
        (entry.key for images in (trained, measured) for entry in images.required()),
        channels=facts.latent_channels,
        factor=facts.vae_factor,
    )
    limit, used = options.size_limit, cache.bytes_used() if options.size_limit is not None else 0
    if limit is not None and needed and used + needed > limit * 1e9:
        raise DataError(Problem(LIMIT_KEY, _limit_sentence(limit, used, needed, cache.root)))
    if (
        needed
        and cache.root is not None
        and (problem := output_folder_problem(cache.root, key=FOLDER_KEY, needed_bytes=needed))
    ):
        raise DataError(problem)


def _limit_sentence(limit: float, used: int, needed: int, folder: Path | None) -> str:
    held = f" beside the {used / 1e9:.3g} GB in {folder}" if used else ""
    clean = f", or make room with `loralab cache clean {folder}`" if used else ""
    return (
        f"{LIMIT_KEY} is {limit:g} GB; the latents of this run need {needed / 1e9:.3g} GB{held}. "
        f"Raise it{clean}."
    )

"""Filling the latent cache: in batches, incrementally, by several processes, through kills."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from loralab.data.augment import Augmentation, Variant
from loralab.data.buckets import Bucket
from loralab.data.crop import fit_nearest
from loralab.data.dataset import BucketedDataset, CacheEntry, Item, make_items, read_pixels
from loralab.data.images import PixelOptions
from loralab.data.index import scan_folder
from loralab.data.latent_cache import LatentCache
from loralab.data.sources import Source
from loralab.errors import DataError
from loralab.models.codec import LatentCodec
from loralab.models.components import vae_digest
from loralab.models.registry import family_spec, load_family
from loralab.training import cache_filling
from loralab.training.cache_filling import batch_size, cut_batches, fill_cache
from tests.tiny import make_images, make_tiny_sd1

BUCKETS = (Bucket(48, 80), Bucket(64, 64), Bucket(80, 48))


def load_codec(base: Path) -> LatentCodec:
    return load_family("sd1", base).load_codec()


class Counting:
    """Loads the tiny VAE and notes the size of every batch that it encodes."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.batches: list[tuple[int, ...]] = []

    def __call__(self) -> LatentCodec:
        codec = load_codec(self.base)
        encode = codec.moments

        def moments(images: Tensor) -> Tensor:
            self.batches.append(tuple(images.shape))
            return encode(images)

        codec.moments = moments  # type: ignore[method-assign]
        return codec


def cache_at(root: Path, base: Path, **options: Any) -> LatentCache:
    return LatentCache(root, vae_digest=vae_digest(base, family_spec("sd1")), **options)


def entries_of(
    cache: LatentCache,
    folder: Path,
    *,
    buckets: tuple[Bucket, ...] = BUCKETS,
    kinds: tuple[str, ...] = (),
    num_variants: int = 1,
    **options: Any,
) -> list[CacheEntry]:
    """Return what a run over a folder asks of its cache."""
    source = Source(
        "images",
        tuple(scan_folder(folder, key="data.image_dir")),
        augmentation=Augmentation(kinds, flip_probability=options.pop("flip_probability", 0.0)),
        pixels=PixelOptions(**options),
    )
    items = make_items([source], partial(fit_nearest, buckets=buckets))
    return BucketedDataset(items, cache=cache, seed=0, num_variants=num_variants).required()


def test_images_of_one_bucket_are_encoded_together(
    base: Path, images: Path, tmp_path: Path
) -> None:
    cache, codec = cache_at(tmp_path, base), Counting(base)
    entries = entries_of(cache, images)
    fill_cache(cache, entries, codec)
    assert cache.missing(entry.key for entry in entries) == []
    sizes = {shape[-2:] for shape in codec.batches}
    assert len(codec.batches) == len(sizes) == 3  # twelve small images, one batch a bucket


def test_batches_are_as_large_as_their_pixels_allow(items: list[Item]) -> None:
    def entry(height: int, width: int) -> CacheEntry:
        plan = replace(items[0].plan, bucket=Bucket(height, width))
        return CacheEntry("", replace(items[0], plan=plan), Variant())

    sizes = [batch_size(entry(side, side)) for side in (64, 256, 512, 768, 1024, 2048)]
    assert sizes == [16, 8, 2, 1, 1, 1]
    cut = cut_batches([entry(512, 512), entry(1024, 1024), entry(512, 512), entry(512, 512)])
    assert [[e.item.bucket.height for e in batch] for batch in cut] == [[512, 512], [512], [1024]]


def test_moments_are_those_of_the_vae(base: Path, images: Path, tmp_path: Path) -> None:
    cache = cache_at(tmp_path, base)
    entries = entries_of(cache, images, flip_probability=0.5)
    fill_cache(cache, entries, partial(load_codec, base))
    codec = load_codec(base)
    for entry in entries:
        expected = codec.vae.encode(read_pixels(entry.item, entry.variant)[None]).latent_dist
        torch.testing.assert_close(
            cache.read(entry.key), expected.parameters[0], rtol=1e-4, atol=1e-5
        )


def test_moments_do_not_depend_on_what_else_was_missing(
    base: Path, images: Path, tmp_path: Path
) -> None:
    whole, parts = cache_at(tmp_path / "whole", base), cache_at(tmp_path / "parts", base)
    entries = entries_of(whole, images)
    fill_cache(whole, entries, partial(load_codec, base))
    for start in range(0, len(entries), 5):
        fill_cache(parts, entries[start : start + 5], partial(load_codec, base), num_workers=2)
    for entry in entries:
        assert torch.equal(whole.read(entry.key), parts.read(entry.key))


def test_progress_is_told_image_by_image(base: Path, images: Path, tmp_path: Path) -> None:
    cache, calls = cache_at(tmp_path, base), []
    entries = entries_of(cache, images)
    fill_cache(cache, entries, partial(load_codec, base), report=lambda *call: calls.append(call))
    assert calls == [(done, 12) for done in range(13)]


def test_only_new_images_are_encoded(base: Path, tmp_path: Path) -> None:
    folder, cache = tmp_path / "images", cache_at(tmp_path / "cache", base)
    make_images(folder, count=5)
    fill_cache(cache, entries_of(cache, folder), partial(load_codec, base))
    make_images(folder, count=6)  # the first five as before
    told: list[tuple[int, int]] = []
    fill_cache(
        cache,
        entries_of(cache, folder),
        partial(load_codec, base),
        report=lambda *call: told.append(call),
    )
    assert told[-1] == (1, 1)


def test_vae_that_makes_nan_names_the_image(base: Path, images: Path, tmp_path: Path) -> None:
    def broken() -> LatentCodec:
        codec = load_codec(base)
        next(codec.parameters()).fill_(float("nan"))
        return codec

    cache = cache_at(tmp_path, base)
    with pytest.raises(DataError, match=r"image_000\.png is encoded to values that are not finite"):
        fill_cache(cache, entries_of(cache, images), broken)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_image_that_cannot_be_read_is_named_and_what_was_done_is_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    monkeypatch.setattr(cache_filling, "LARGEST_BATCH", 1)
    folder, cache = tmp_path / "images", cache_at(tmp_path / "cache", base)
    files = make_images(folder, count=4)
    entries = entries_of(cache, folder)
    files[3].write_bytes(b"gone bad")
    with pytest.raises(DataError, match=r"image_003\.png has changed"):
        fill_cache(cache, entries, partial(load_codec, base), num_workers=num_workers)
    assert 0 < len(cache.missing(entry.key for entry in entries)) < 4


# -- what is a miss and what is a hit ----------------------------------------------------------


@pytest.fixture(scope="module")
def filled(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of four images and the cache that a run has filled for it."""
    root = tmp_path_factory.mktemp("filled")
    make_images(root / "images", count=4)
    cache = cache_at(root / "cache", base)
    fill_cache(cache, entries_of(cache, root / "images"), partial(load_codec, base))
    return root / "images", root / "cache"


def num_missing(cache: LatentCache, folder: Path, **options: Any) -> int:
    return len(cache.missing(e.key for e in entries_of(cache, folder, **options)))


def test_same_run_again_misses_nothing(base: Path, filled: tuple[Path, Path]) -> None:
    assert num_missing(cache_at(filled[1], base), filled[0]) == 0


@pytest.mark.parametrize(
    ("changed", "options"),
    [
        ("resolution", {"buckets": (Bucket(32, 32),)}),
        ("shape", {"buckets": (Bucket(64, 64),)}),  # as large, cut elsewhere: two of four
        ("flip", {"flip_probability": 1.0}),
        ("crop", {"kinds": ("random_crop",), "num_variants": 3}),
        ("color", {"kinds": ("color",), "num_variants": 8}),
        ("filter", {"resize_filter": "area"}),
        ("background", {"background": "black"}),
    ],
)
def test_a_changed_option_is_a_miss(
    base: Path, filled: tuple[Path, Path], changed: str, options: dict[str, Any]
) -> None:
    assert num_missing(cache_at(filled[1], base), filled[0], **options) > 0


def test_a_changed_precision_is_a_miss(base: Path, filled: tuple[Path, Path]) -> None:
    assert num_missing(cache_at(filled[1], base, precision="fp16"), filled[0]) == 4


def test_a_changed_vae_is_a_miss(filled: tuple[Path, Path], tmp_path: Path) -> None:
    other = make_tiny_sd1(tmp_path / "other", seed=1)
    assert num_missing(cache_at(filled[1], other), filled[0]) == 4


def test_a_changed_pixel_is_a_miss_of_that_image_alone(
    base: Path, filled: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(filled[0], tmp_path / "images")
    file = folder / "image_002.png"
    with Image.open(file) as image:
        image.load()
    image.putpixel((5, 5), (1, 2, 3))
    image.save(file)
    assert num_missing(cache_at(filled[1], base), folder) == 1


@pytest.mark.parametrize("action", ["touch", "rename", "move", "copy", "caption"])
def test_what_leaves_the_pixels_alone_is_a_hit(
    base: Path, filled: tuple[Path, Path], tmp_path: Path, action: str
) -> None:
    folder = shutil.copytree(filled[0], tmp_path / "images")
    file = folder / "image_002.png"
    if action == "touch":
        os.utime(file)
    elif action == "rename":
        file.rename(folder / "zebra.png")
        file.with_suffix(".txt").rename(folder / "zebra.txt")
    elif action == "move":
        (folder / "deeper").mkdir()
        for ending in (".png", ".txt"):
            file.with_suffix(ending).rename(folder / "deeper" / f"image{ending}")
    elif action == "copy":
        for ending in (".png", ".txt"):
            shutil.copy(file.with_suffix(ending), folder / f"twin{ending}")
    else:
        file.with_suffix(".txt").write_text("another caption")
    assert num_missing(cache_at(filled[1], base), folder) == 0


# -- several processes, and kills --------------------------------------------------------------


class Logged(LatentCache):
    """Appends each key to a file once its moments are kept."""

    log: Path

    def write(self, key: str, moments: Tensor, *, source: Path | None = None) -> None:
        super().write(key, moments, source=source)
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{key}\n".encode())
        os.close(descriptor)


def logged_cache(root: Path) -> Logged:
    cache = Logged(root / "cache", vae_digest="vae")
    cache.log = root / "log.txt"
    return cache


def fill_alone(root: Path, base: Path) -> None:
    torch.set_num_threads(1)  # the pool of the parent's threads did not come along
    cache = logged_cache(root)
    fill_cache(cache, entries_of(cache, root / "images"), partial(load_codec, base))


def start_filling(root: Path, base: Path) -> Any:
    process = multiprocessing.get_context("fork").Process(target=fill_alone, args=(root, base))
    process.start()
    return process


def assert_whole(root: Path, cache: LatentCache) -> None:
    entries = entries_of(cache, root / "images")
    assert cache.missing(entry.key for entry in entries) == []
    for entry in entries:
        cache.read(entry.key)  # refuses a wrong checksum
    assert list((root / "cache" / "unfinished").iterdir()) == []


@pytest.mark.parametrize("one_is_killed", [False, True])
def test_processes_that_fill_one_cache_at_once_share_the_work(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_is_killed: bool
) -> None:
    monkeypatch.setattr(cache_filling, "LARGEST_BATCH", 2)  # many chances to meet
    make_images(tmp_path / "images", count=40)
    log = tmp_path / "log.txt"
    log.touch()
    processes = [start_filling(tmp_path, base) for _ in range(3)]
    if one_is_killed:
        while log.stat().st_size == 0:
            time.sleep(0.001)
        os.kill(processes.pop().pid, signal.SIGKILL)
    for process in processes:
        process.join(60)
    assert {process.exitcode for process in processes} == {0}
    keys = log.read_text().split()
    assert len(keys) == len(set(keys)), "an image was encoded by two of them"
    assert len(keys) >= 40 - 2 * one_is_killed  # a killed one has no time to log its last batch
    cache = logged_cache(tmp_path)
    entries = entries_of(cache, tmp_path / "images")
    assert cache.missing(entry.key for entry in entries) == []
    for entry in entries:
        cache.read(entry.key)  # refuses a wrong checksum


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_fillings_leave_nothing_behind_and_nothing_is_encoded_twice(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    monkeypatch.setattr(cache_filling, "LARGEST_BATCH", 2)  # many chances to be killed
    make_images(tmp_path / "images", count=8 * rounds)
    log, rng, killed = tmp_path / "log.txt", random.Random(0), 0
    log.touch()
    for _ in range(rounds):
        before = log.stat().st_size
        process = start_filling(tmp_path, base)
        while log.stat().st_size == before and process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= rounds // 2, "the fillings ended before they could be killed"
    fill_alone(tmp_path, base)
    keys = log.read_text().split()
    assert len(keys) == len(set(keys)), "an image was encoded although it was kept"
    assert_whole(tmp_path, logged_cache(tmp_path))


def test_filling_in_memory_leaves_no_file(base: Path, images: Path, tmp_path: Path) -> None:
    cache = LatentCache(None, vae_digest="vae")
    entries = entries_of(cache, images)
    fill_cache(cache, entries, partial(load_codec, base))
    assert cache.missing(entry.key for entry in entries) == []
    assert list(tmp_path.iterdir()) == []


Make = Callable[..., Any]


def test_frozen_posterior_is_one_draw_and_resampling_many(
    base: Path, make_module: Make, make_data: Make, items: list[Item]
) -> None:
    (batch, *_) = list(make_data(items[:2]).train_dataloader())
    later = {**batch, "epoch": 1}
    frozen, other_run = make_module(posterior="frozen"), make_module(posterior="frozen", seed=9)
    assert torch.equal(frozen.latents(batch), frozen.latents(later))
    assert torch.equal(frozen.latents(batch), other_run.latents(batch))
    resampled = make_module()
    assert not torch.equal(resampled.latents(batch), resampled.latents(later))
    mean = resampled.moments(batch).chunk(2, dim=1)[0] * resampled.family.latent_scale
    assert not torch.equal(frozen.latents(batch), mean), "a draw, not the mean"

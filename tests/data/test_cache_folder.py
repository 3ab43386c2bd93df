"""What `loralab cache` may count and remove: our own files and nothing else."""

import os
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from loralab.data.buckets import Bucket
from loralab.data.cache_folder import removable, remove, summarize
from loralab.data.crop import plan_crop
from loralab.data.latent_cache import LatentCache


@pytest.fixture
def cache(tmp_path):
    """Three entries: two of a wide bucket, one of a square one."""
    cache = LatentCache(tmp_path / "latents", vae_digest="vae")
    for name, bucket in (("a", (64, 96)), ("b", (64, 96)), ("c", (64, 64))):
        cache.write(key_of(cache, name, bucket), torch.zeros(8, bucket[0] // 8, bucket[1] // 8))
    return cache


def key_of(cache, name, size=(64, 96)):
    return cache.key(name, plan_crop(*size, Bucket(*size)))


def file_of(cache, name, size=(64, 96)):
    return cache.store.path(key_of(cache, name, size))


def age(path, days):
    then = time.time() - days * 86400
    os.utime(path, (then, then))


def reasons(removals):
    return {removal.path.name: removal.reason for removal in removals}


def test_summary_counts_files_and_bytes_by_bucket(cache):
    summary = summarize(cache.root)
    files = list(cache.root.rglob("*.safetensors"))
    assert summary.num_files == 3
    assert summary.num_bytes == sum(file.stat().st_size for file in files)
    assert summary.by_bucket == {"96x64": 2, "64x64": 1}


def test_sound_cache_has_nothing_to_remove(cache):
    assert removable(cache.root) == []


def test_damaged_files_may_go(cache):
    bad = file_of(cache, "a")
    data = bytearray(bad.read_bytes())
    data[-1] ^= 1
    bad.write_bytes(data)
    assert reasons(removable(cache.root)) == {bad.name: "damaged"}


def test_files_of_another_format_version_may_go(cache):
    old = file_of(cache, "b")
    save_file(load_file(old), old, metadata={"key": key_of(cache, "b"), "crc32": "0"})
    assert reasons(removable(cache.root)) == {old.name: "another format version"}


def test_files_not_used_for_so_long_may_go(cache):
    age(file_of(cache, "a"), days=31)
    age(file_of(cache, "b"), days=29)
    found = removable(cache.root, days=30)
    assert reasons(found) == {file_of(cache, "a").name: "not used for 30 days"}


def test_what_was_used_longest_ago_goes_first_down_to_the_size(cache):
    for days, name in enumerate("ab", 1):
        age(file_of(cache, name), days=days)
    size = file_of(cache, "a").stat().st_size
    found = removable(cache.root, max_bytes=cache.bytes_used() - size - 1)
    assert [removal.path for removal in found] == [file_of(cache, "b"), file_of(cache, "a")]
    assert removable(cache.root, max_bytes=cache.bytes_used()) == []


def test_removing_leaves_the_rest_and_the_run_encodes_what_is_gone(cache):
    remove(cache.root, removable(cache.root, max_bytes=0))
    assert summarize(cache.root).num_files == 0
    assert sorted(path.name for path in cache.root.iterdir()) == ["CACHEDIR.TAG", "unfinished"]
    assert cache.missing([key_of(cache, "a")]) == [key_of(cache, "a")]


def test_all_takes_what_caches_write_and_nothing_else(cache):
    shard = file_of(cache, "a").parent
    foreign = [
        cache.root / "notes.txt",
        cache.root / "model.safetensors",
        shard / "model.safetensors",
        cache.root / "photos" / "cat.jpg",
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (cache.root / "files.json").write_text("{}")
    remove(cache.root, removable(cache.root, everything=True))
    assert all(path.exists() for path in foreign)
    assert summarize(cache.root).num_files == 0
    assert not (cache.root / "files.json").exists()


def test_links_are_not_followed(cache, tmp_path):
    away = tmp_path / "away"
    away.mkdir()
    shards = {path.name for path in cache.root.iterdir()}
    free = next(name for name in ("00", "11", "22", "33") if name not in shards)
    kept = away / f"{free}{'0' * 38}-64x96.safetensors"
    kept.write_bytes(b"not ours")
    (cache.root / free).symlink_to(away)  # a folder
    shard = file_of(cache, "a").parent
    link = shard / f"{shard.name}{'0' * 38}-64x96.safetensors"
    link.symlink_to(kept)
    remove(cache.root, removable(cache.root, everything=True))
    assert kept.read_bytes() == b"not ours"
    assert link.is_symlink()


@pytest.mark.parametrize("tag", [None, "Signature: 8a477f597d28d172789f06886806bc55\n# pip\n"])
def test_folder_that_is_no_latent_cache_is_refused(tmp_path, problems_of, tag):
    if tag is not None:
        (tmp_path / "CACHEDIR.TAG").write_text(tag)
    for action in (summarize, removable):
        assert problems_of(action, tmp_path) == [
            f"{tmp_path} is no latent cache: it has no CACHEDIR.TAG of ours; give the folder that "
            "data.latent_cache.directory names."
        ]


def test_missing_folder_is_refused(tmp_path, problems_of):
    (message,) = problems_of(summarize, tmp_path / "nowhere")
    assert message.startswith(f"{tmp_path / 'nowhere'} is no folder;")


def test_file_that_vanishes_meanwhile_is_no_error(cache):
    found = removable(cache.root, everything=True)
    file_of(cache, "a").unlink()
    remove(cache.root, found)


def test_file_that_cannot_be_removed_is_named(cache, problems_of):
    (removal,) = removable(cache.root, max_bytes=cache.bytes_used() - 1)
    removal.path.unlink()
    removal.path.mkdir()  # root may remove anything else
    (message,) = problems_of(remove, cache.root, [removal])
    assert message.startswith(f"{removal.path} cannot be removed (")
    assert message.endswith(f"mend the permissions of {cache.root}.")

"""`loralab cache`: what it prints, what it removes, what it refuses."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from loralab.cli.main import app
from loralab.data.buckets import Bucket
from loralab.data.crop import plan_crop
from loralab.data.latent_cache import LatentCache
from loralab.data.moment_store import FileStore
from loralab.errors import DataError


def loralab(*arguments: object) -> str:
    """Run a command in this process and return what it printed."""
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of three entries of about 16 kB; the first is damaged, the second unused for long."""
    cache = LatentCache(tmp_path / "latents", vae_digest="vae")
    keys = [cache.key(name, plan_crop(64, 64, Bucket(64, 64))) for name in "abc"]
    for key in keys:
        cache.write(key, torch.zeros(64, 8, 8))
    assert isinstance(cache.store, FileStore)
    first, second = (cache.store.path(key) for key in keys[:2])
    first.write_bytes(first.read_bytes()[:-1])
    long_ago = time.time() - 100 * 86400
    os.utime(second, (long_ago, long_ago))
    return tmp_path / "latents"


def num_files(folder: Path) -> int:
    return len(list(folder.rglob("*.safetensors")))


def test_info_counts_latents_by_bucket(folder: Path) -> None:
    lines = loralab("cache", "info", folder).splitlines()
    assert lines[0] == f"{folder} holds 3 latents, 0.05 MB."
    assert lines[1].split() == ["64x64", "3"]
    assert lines[2] == "Longest unused: 100 days."


def test_clean_removes_what_is_damaged_and_tells_what_it_frees(folder: Path) -> None:
    assert loralab("cache", "clean", folder).splitlines() == [
        "  damaged: 1 files, 0.02 MB",
        f"Freed 0.02 MB in {folder}.",
    ]
    assert num_files(folder) == 2


def test_dry_run_removes_nothing(folder: Path) -> None:
    output = loralab("cache", "clean", folder, "--all", "--dry-run")
    assert output.splitlines()[-1] == f"Would free 0.05 MB in {folder}."
    assert num_files(folder) == 3


@pytest.mark.parametrize(
    ("options", "left"), [(["--days", "99"], 1), (["--size", "2e-5"], 1), (["--all"], 0)]
)
def test_options_say_what_else_goes(folder: Path, options: list[str], left: int) -> None:
    loralab("cache", "clean", folder, *options)
    assert num_files(folder) == left


def test_folder_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.safetensors").write_text("mine")
    for command in ("info", "clean"):
        with pytest.raises(DataError, match=r"is no latent cache: it has no CACHEDIR\.TAG of ours"):
            loralab("cache", command, tmp_path)
    assert (tmp_path / "photo.safetensors").exists()

"""What lies in a latent cache's folder, and what of it may go.

Only files that a cache has written are ever counted or removed: names of our form, in folders of
our form, below a folder that carries our tag. Links are not followed.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loralab.data.moment_store import (
    FORMAT_VERSION,
    TAG,
    TAG_FILE,
    format_of,
    is_sound,
    unfinished_files,
)
from loralab.errors import DataError, Problem

INDEX_FILE = "files.json"
_KEY = re.compile(r"[0-9a-f]{40}-\d+x\d+")
_DAY = 86400.0


@dataclass(frozen=True)
class CacheFile:
    """One file of moments: its key, size in bytes and time of last use."""

    path: Path
    key: str
    size: int
    last_used: float


@dataclass(frozen=True)
class Removal:
    """A file that may go, and why."""

    path: Path
    size: int
    reason: str


@dataclass(frozen=True)
class CacheSummary:
    """What a cache holds: number of files and bytes by bucket (width x height), and the rest."""

    root: Path
    num_files: int
    num_bytes: int
    by_bucket: dict[str, int]
    oldest: float | None
    num_unfinished: int


def cache_files(root: Path) -> Iterator[CacheFile]:
    """Yield the files of moments in a cache, whole or not."""
    if not root.is_dir():
        return
    with os.scandir(root) as folders:
        shards = [f for f in folders if re.fullmatch("[0-9a-f]{2}", f.name)]
    for shard in shards:
        if not shard.is_dir(follow_symlinks=False):
            continue
        with os.scandir(shard) as entries:
            for entry in entries:
                key, _, ending = entry.name.partition(".")
                ours = ending == "safetensors" and _KEY.fullmatch(key) and key[:2] == shard.name
                if ours and entry.is_file(follow_symlinks=False):
                    stat = entry.stat(follow_symlinks=False)
                    yield CacheFile(Path(entry.path), key, stat.st_size, stat.st_mtime)


def summarize(root: Path) -> CacheSummary:
    """Return what a cache holds.

    Raises:
        DataError: If the folder is no latent cache.
    """
    _check_is_cache(root)
    files = list(cache_files(root))
    buckets = Counter("x".join(reversed(f.key.rsplit("-", 1)[1].split("x"))) for f in files)
    return CacheSummary(
        root=root,
        num_files=len(files),
        num_bytes=sum(file.size for file in files),
        by_bucket=dict(buckets.most_common()),
        oldest=min((file.last_used for file in files), default=None),
        num_unfinished=len(unfinished_files(root)),
    )


def removable(
    root: Path, *, days: float | None = None, max_bytes: int | None = None, everything: bool = False
) -> list[Removal]:
    """Return what may go, and remove nothing.

    Args:
        root: Folder of the cache.
        days: Also what was last used longer ago.
        max_bytes: Also what was used longest ago, until no more than this is left.
        everything: All that is ours.

    Raises:
        DataError: If the folder is no latent cache.
    """
    _check_is_cache(root)
    found = [Removal(part, part.stat().st_size, "unfinished") for part in unfinished_files(root)]
    kept = []
    for file in cache_files(root):
        reason = "everything" if everything else _fault(file)
        if reason is None and days is not None and file.last_used < time.time() - days * _DAY:
            reason = f"not used for {days:g} days"
        if reason is None:
            kept.append(file)
        else:
            found.append(Removal(file.path, file.size, reason))
    left = sum(file.size for file in kept)
    for file in sorted(kept, key=lambda file: file.last_used):
        if max_bytes is None or left <= max_bytes:
            break
        found.append(Removal(file.path, file.size, "over the size"))
        left -= file.size
    index = root / INDEX_FILE
    if everything and index.is_file() and not index.is_symlink():
        found.append(Removal(index, index.stat().st_size, "everything"))
    return found


def remove(root: Path, removals: list[Removal]) -> None:
    """Remove files, and the folders that are empty then.

    Raises:
        DataError: If one cannot be removed; those before it are gone.
    """
    try:
        for removal in removals:
            removal.path.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        sentence = f"{removal.path} cannot be removed ({reason}); mend the permissions of {root}."
        raise DataError(Problem(str(removal.path), sentence)) from error
    for folder in {removal.path.parent for removal in removals} - {root}:
        with contextlib.suppress(OSError):  # it holds more, or another process was quicker
            folder.rmdir()


def _fault(file: CacheFile) -> str | None:
    try:
        data = file.path.read_bytes()
    except FileNotFoundError:  # another process was quicker
        return None
    if is_sound(data, file.key):
        return None
    return "damaged" if format_of(data) in (None, FORMAT_VERSION) else "another format version"


def _check_is_cache(root: Path) -> None:
    tag = root / TAG_FILE
    if not root.is_dir():
        what = "is no folder"
    elif not tag.is_file() or tag.read_text(encoding="utf-8", errors="replace") != TAG:
        what = f"is no latent cache: it has no {TAG_FILE} of ours"
    else:
        return
    sentence = f"{root} {what}; give the folder that data.latent_cache.directory names."
    raise DataError(Problem(str(root), sentence))

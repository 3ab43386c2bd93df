"""What is known of image files from earlier starts, so that unchanged ones are not read again.

A file counts as unchanged while path, size, inode and both of its times are the same. The kernel
sets the time of change itself, so a copy over the old file is seen even where its other time was
set back.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from loralab.data.images import content_digest, read_bytes, read_size
from loralab.files import replacing

FORMAT_VERSION = 2  # raise it when what is taken for a sound file changes: read_size, digest
SETTLING_NS = 2_000_000_000  # a younger file may change again within one tick of its clock


@dataclass(frozen=True)
class FileFacts:
    """What a run needs to know of an image file: ``content_digest``, and size as displayed."""

    digest: str
    height: int
    width: int


class FileIndex:
    """Facts of image files, kept in one JSON file that runs share."""

    def __init__(self, path: Path | None, *, settling_ns: int = SETTLING_NS) -> None:
        """Read what earlier starts left; anything unusable counts as nothing.

        Args:
            path: File of the index; None remembers nothing.
            settling_ns: Age below which a file is not remembered.
        """
        self.path = path
        self.settling_ns = settling_ns
        self.num_read = 0  # files whose bytes were read
        self._known = _load(path) if path is not None else {}
        self._new: dict[str, list[int | str]] = {}

    def facts(self, path: Path) -> FileFacts:
        """Return the facts of an image, from memory or by reading it.

        Raises:
            DataError: If the file cannot be read or is no usable image; never remembered.
        """
        name = os.path.abspath(path)
        before = _stamp(path)
        known = self._known.get(name)
        if known is not None and known[:5] == before:
            digest, height, width = known[5:]
            return FileFacts(str(digest), int(height), int(width))
        data = read_bytes(path)
        height, width = read_size(data, path)
        found = FileFacts(content_digest(data), height, width)
        self.num_read += 1
        if before is not None and before == _stamp(path) and self._is_settled(before):
            self._new[name] = [*before, found.digest, height, width]
        return found

    def save(self) -> None:
        """Add what was found to the file, whole or not at all; failing to is no error."""
        if self.path is None or not self._new:
            return
        merged = {**_load(self.path), **self._new}  # another run may have written meanwhile
        self._known, self._new = merged, {}
        with contextlib.suppress(OSError), replacing(self.path) as part:
            content = {"format": FORMAT_VERSION, "crc32": _checksum(merged), "files": merged}
            part.write_text(json.dumps(content))

    def _is_settled(self, stamp: list[int | str]) -> bool:
        changed = max(int(stamp[2]), int(stamp[3]))
        return time.time_ns() - changed >= self.settling_ns


def _stamp(path: Path) -> list[int | str] | None:
    """Return what changes when a file does, or None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_dev]


def _checksum(files: dict[str, list[int | str]]) -> int:
    """Return what tells that the entries are as they were written."""
    return zlib.crc32(json.dumps(files).encode())


def _load(path: Path) -> dict[str, list[int | str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files: dict[str, list[int | str]] = content["files"]
        is_sound = content["format"] == FORMAT_VERSION and content["crc32"] == _checksum(files)
        return files if is_sound else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}

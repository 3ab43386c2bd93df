"""Where moments are kept: one safetensors file per key, or the memory of this process.

Files are written aside and moved into place whole, so readers and several writers of one key need
no lock, and a killed writer leaves nothing that counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
import uuid
import zlib
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from safetensors.torch import load, save
from torch import Tensor

from loralab.data.batch import fits
from loralab.errors import DataError, Problem

FORMAT_VERSION = 3  # raise it when pixels or layout change: crop_image, tensor name, header
TAG_FILE = "CACHEDIR.TAG"  # https://bford.info/cachedir: backups leave the folder out
TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# latent cache of loralab\n"
UNFINISHED = "unfinished"  # files being written; moved into place when whole
CONFIG_KEY = "data.latent_cache.directory"
_LONGEST_HEADER = 4096  # bytes; ours take about 400
_DAY = 86400.0
_DTYPES = {"F32": 4, "F16": 2, "BF16": 2}


class Store(Protocol):
    """What a latent cache asks of the place that it keeps its moments in."""

    def holds(self, key: str) -> bool:
        """Tell whether the moments of a key are there, and whole as far as a glance can tell."""

    def read(self, key: str) -> Tensor:
        """Return the moments of a key as they were written."""

    def write(self, key: str, moments: Tensor) -> None:
        """Keep moments, shape (2C, h, w)."""


class MemoryStore:
    """Keeps moments for as long as the process lives; loader processes inherit them."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def holds(self, key: str) -> bool:
        return key in self._kept

    def read(self, key: str) -> Tensor:
        return self._kept[key]

    def write(self, key: str, moments: Tensor) -> None:
        self._kept[key] = moments.clone()


class FileStore:
    """Keeps moments in a folder that runs share."""

    def __init__(self, root: Path) -> None:
        """Keep the folder; it is made on the first write."""
        self.root = root
        self._ready = False

    def path(self, key: str) -> Path:
        """Return the file of a key."""
        return self.root / key[:2] / f"{key}.safetensors"

    def holds(self, key: str) -> bool:
        """Look at name, header and length; ``read`` checks the contents.

        Raises:
            DataError: If the folder cannot be read.
        """
        path = self.path(key)
        try:
            with path.open("rb") as file:
                start, stat = file.read(8 + _LONGEST_HEADER), os.fstat(file.fileno())
        except FileNotFoundError:
            return False
        except OSError as error:
            self._refuse("reading", error)
        if parse_header(start, stat.st_size, key) is None:
            return False
        if time.time() - stat.st_mtime > _DAY:
            with contextlib.suppress(OSError):  # a shared cache may be read-only
                os.utime(path)  # last use, for `loralab cache clean --days`
        return True

    def read(self, key: str) -> Tensor:
        """Return the moments of a key.

        Raises:
            DataError: If the file is missing, damaged or unreadable.
        """
        path = self.path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            sentence = f"{path} is gone from the latent cache; start the run again to rebuild it."
            raise DataError(Problem(str(path), sentence)) from error
        except OSError as error:
            self._refuse("reading", error)
        if not is_sound(data, key):
            sentence = (
                f"{path} is damaged; take all damaged files out with `loralab cache clean "
                f"{self.root}` and start the run again to rebuild them."
            )
            raise DataError(Problem(str(path), sentence))
        return load(data)["moments"]

    def write(self, key: str, moments: Tensor) -> None:
        """Store moments; another writer of the key does no harm.

        Raises:
            DataError: If the file cannot be written.
        """
        checksum = f"{zlib.crc32(moments.view(torch.uint8).numpy().data):08x}"
        facts = {"key": key, "format": str(FORMAT_VERSION), "crc32": checksum}
        data = save({"moments": moments}, metadata=facts)
        try:
            self._prepare()
            self._replace(self.path(key), data)
        except OSError as error:
            self._refuse("writing", error)

    def _prepare(self) -> None:
        """Mark the folder as a cache and take away what killed writers left, once."""
        if self._ready:
            return
        (self.root / UNFINISHED).mkdir(parents=True, exist_ok=True)
        if not (self.root / TAG_FILE).exists():
            self._replace(self.root / TAG_FILE, TAG.encode())
        for part in unfinished_files(self.root):
            part.unlink(missing_ok=True)
        self._ready = True

    def _replace(self, path: Path, data: bytes) -> None:
        part = self.root / UNFINISHED / f"{_writer()}-{uuid.uuid4().hex}.part"
        try:
            part.write_bytes(data)
            path.parent.mkdir(exist_ok=True)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def _refuse(self, action: str, error: OSError) -> NoReturn:
        reason = error.strerror or type(error).__name__
        sentence = (
            f"{CONFIG_KEY} is {self.root}; {action} there failed ({reason}). Free space, mend its "
            "permissions or name another folder."
        )
        raise DataError(Problem(CONFIG_KEY, sentence)) from error


def is_sound(data: bytes, key: str) -> bool:
    """Tell whether the bytes of a file are the moments of ``key``, to the last bit."""
    header = parse_header(data[: 8 + _LONGEST_HEADER], len(data), key)
    return header is not None and header["__metadata__"]["crc32"] == _checksum(data)


def parse_header(start: bytes, size: int, key: str) -> dict[str, Any] | None:
    """Return the safetensors header if it announces the moments of ``key`` in ``size`` bytes."""
    length = int.from_bytes(start[:8], "little")
    try:
        header = json.loads(start[8 : 8 + length])
        entry, metadata = header["moments"], header["__metadata__"]
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        whole = (
            size == 8 + length + end
            and metadata["key"] == key
            and metadata["format"] == str(FORMAT_VERSION)
            and "crc32" in metadata
            and len(shape) == 3
            and shape[0] % 2 == 0
            and fits(shape[1:], bucket_of(key))
            and (begin, end) == (0, _DTYPES[entry["dtype"]] * shape[0] * shape[1] * shape[2])
        )
    except (ValueError, KeyError, TypeError):  # not JSON, or not our JSON
        return None
    return header if whole else None


def format_of(data: bytes) -> int | None:
    """Return the format version that the bytes of a file say they have, or None."""
    length = int.from_bytes(data[:8], "little")
    try:
        return int(json.loads(data[8 : 8 + length])["__metadata__"].get("format", 1))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def bucket_of(key: str) -> tuple[int, int]:
    """Return (height, width) in pixels of the bucket that a key ends with."""
    height, width = key.rsplit("-", 1)[1].split("x")
    return int(height), int(width)


def unfinished_files(root: Path) -> list[Path]:
    """Return files that nobody will finish: of a dead process of this machine, or a day old."""
    found = []
    for part in (root / UNFINISHED).glob("*.part"):
        named = re.fullmatch(r"(.+)-(\d+)-[0-9a-f]{32}\.part", part.name)
        if named is None or part.is_symlink():
            continue
        try:
            old = time.time() - part.stat().st_mtime > _DAY
        except FileNotFoundError:  # just moved into place
            continue
        if old or (named[1] == _host() and not _is_alive(int(named[2]))):
            found.append(part)
    return found


def _writer() -> str:
    return f"{_host()}-{os.getpid()}"


def _host() -> str:
    return re.sub(r"[^\w.]", "_", socket.gethostname())


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 is no mere question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _checksum(data: bytes) -> str:
    length = int.from_bytes(data[:8], "little")
    return f"{zlib.crc32(memoryview(data)[8 + length :]):08x}"

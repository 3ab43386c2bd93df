"""VAE moments on disk, one safetensors file per image, crop and flip.

The key names everything that the moments depend on, so a changed image, crop or VAE is another key
and an old file is never taken for a new one. Files are replaced whole: readers and several writers
of one key need no lock.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load, save
from torch import Tensor

from loralab.data.batch import fits
from loralab.data.crop import CropPlan
from loralab.errors import DataError, Problem

FORMAT_VERSION = 1  # raise it when pixels or layout change: crop_image, dtype, tensor name
_CONFIG_KEY = "data.latent_cache.directory"
_LONGEST_HEADER = 4096  # bytes; ours take about 300


class LatentCache:
    """A folder of VAE moments addressed by content."""

    def __init__(self, root: Path, *, vae_digest: str) -> None:
        """Keep the folder, made on the first write, and the identity of the VAE."""
        self.root = root
        self.vae_digest = vae_digest

    def key(self, digest: str, plan: CropPlan, *, flipped: bool) -> str:
        """Return the name of the moments of one image: a fingerprint and the bucket, ``…-HxW``."""
        facts = {
            "format": FORMAT_VERSION,
            "filter": "lanczos",
            "vae": self.vae_digest,
            "image": digest,
            "resized": plan.resized,
            "top_left": (plan.top, plan.left),
            "bucket": (plan.bucket.height, plan.bucket.width),
            "flipped": flipped,
        }
        fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]
        return f"{fingerprint}-{plan.bucket.height}x{plan.bucket.width}"

    def path(self, key: str) -> Path:
        """Return the file of a key."""
        return self.root / key[:2] / f"{key}.safetensors"

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys to be written, each once: no file, or one that is not whole.

        Looks at names, headers and lengths; ``read`` checks the contents.

        Raises:
            DataError: If the folder cannot be read.
        """
        return [key for key in dict.fromkeys(keys) if not self._is_whole(key)]

    def read(self, key: str) -> Tensor:
        """Return the moments of a key, shape (2C, h, w) float32: mean, then log-variance.

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
        header = _parse_header(data[: 8 + _LONGEST_HEADER], len(data), key)
        if header is None or header["__metadata__"]["crc32"] != _checksum(data):
            sentence = f"{path} is damaged; delete it and start the run again to rebuild it."
            raise DataError(Problem(str(path), sentence))
        return load(data)["moments"]

    def write(self, key: str, moments: Tensor, *, source: Path | None = None) -> None:
        """Store moments, shape (2C, h, w), as float32; another writer of the key does no harm.

        Args:
            key: What ``key`` returned.
            moments: Mean and log-variance, finite.
            source: The image, to be named in messages.

        Raises:
            DataError: If a value is not finite or the file cannot be written.
        """
        assert moments.ndim == 3, moments.shape
        assert moments.shape[0] % 2 == 0, moments.shape
        assert fits(moments.shape[1:], _bucket_of(key)), (moments.shape, key)
        moments = moments.detach().to("cpu", torch.float32).contiguous()
        if not moments.isfinite().all():
            name = str(source or key)
            sentence = (
                f"{name} is encoded to values that are not finite; encode in float32, or take the "
                "image out."
            )
            raise DataError(Problem(name, sentence))
        checksum = f"{zlib.crc32(moments.numpy().tobytes()):08x}"
        data = save({"moments": moments}, metadata={"key": key, "crc32": checksum})
        try:
            _replace_file(self.path(key), data)
        except OSError as error:
            self._refuse("writing", error)

    def _is_whole(self, key: str) -> bool:
        try:
            with self.path(key).open("rb") as file:
                start = file.read(8 + _LONGEST_HEADER)
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return False
        except OSError as error:
            self._refuse("reading", error)
        return _parse_header(start, size, key) is not None

    def _refuse(self, action: str, error: OSError) -> NoReturn:
        reason = error.strerror or type(error).__name__
        sentence = (
            f"{_CONFIG_KEY} is {self.root}; {action} there failed ({reason}). Free space, mend its "
            "permissions or name another folder."
        )
        raise DataError(Problem(_CONFIG_KEY, sentence)) from error


def _replace_file(path: Path, data: bytes) -> None:
    """Write beside the target, then swap in one step: nobody ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _parse_header(start: bytes, size: int, key: str) -> dict[str, Any] | None:
    """Return the safetensors header if it announces the moments of ``key`` in ``size`` bytes."""
    length = int.from_bytes(start[:8], "little")
    try:
        header = json.loads(start[8 : 8 + length])
        entry, metadata = header["moments"], header["__metadata__"]
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        whole = (
            size == 8 + length + end
            and metadata["key"] == key
            and "crc32" in metadata
            and entry["dtype"] == "F32"
            and len(shape) == 3
            and shape[0] % 2 == 0
            and fits(shape[1:], _bucket_of(key))
            and (begin, end) == (0, 4 * shape[0] * shape[1] * shape[2])
        )
    except (ValueError, KeyError, TypeError):  # not JSON, or not our JSON
        return None
    return header if whole else None


def _bucket_of(key: str) -> tuple[int, int]:
    height, width = key.rsplit("-", 1)[1].split("x")
    return int(height), int(width)


def _checksum(data: bytes) -> str:
    length = int.from_bytes(data[:8], "little")
    return f"{zlib.crc32(memoryview(data)[8 + length :]):08x}"

"""Reading and writing the safetensors container: atomic, reproducible bytes, kohya's two hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loralab.errors import AdapterError, Problem


def serialize(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, with_hashes: bool
) -> bytes:
    """Return a file's bytes; equal arguments give equal bytes.

    Args:
        with_hashes: Add ``sshs_model_hash`` and ``sshs_legacy_hash``, which kohya computes from
            a file with the same tensors and only the ``ss_`` metadata.
    """
    assert all(isinstance(x, str) for pair in metadata.items() for x in pair), "str -> str only"
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    data = safetensors.torch.save(dict(tensors), kept)
    hashes = kohya_hashes(data) if with_hashes else {}
    return _with_metadata(data, {**metadata, **hashes})


def kohya_hashes(data: bytes) -> dict[str, str]:
    """Return the hash of everything after the header, and the short hash of older tools."""
    start = _body_start(data)
    return {
        "sshs_model_hash": hashlib.sha256(memoryview(data)[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8],
    }


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is never seen half written: temporary file, fsync, rename.

    Raises:
        AdapterError: The file system refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        text = f"{path} cannot be written: {error.strerror or error}; choose another folder."
        raise AdapterError(Problem(str(path), text)) from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors and metadata.

    Raises:
        AdapterError: The file is missing, truncated or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        text = f"{path} cannot be read as a safetensors file: {error}."
        raise AdapterError(Problem(str(path), text)) from error


def _body_start(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def _with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """Replace the metadata, sorted: safetensors 0.8 writes it in another order every time."""
    start = _body_start(data)
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of eight
    return len(text).to_bytes(8, "little") + text + data[start:]

"""Adapter files as containers: safetensors and pickle, read and written tensor by tensor.

Files are atomic and reproducible: equal content gives equal bytes, and a file is never seen half
written. safetensors files carry kohya's two hashes.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loralab.errors import AdapterError, Problem
from loralab.files import replacing

PICKLES = (".ckpt", ".pt", ".bin")
SUFFIXES = (".safetensors", *PICKLES)

# safetensors' names of the dtypes, in the order in which it lays tensors out.
_DTYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_ORDER = list(_DTYPES)
_HASH_START, _HASH_END = 0x100000, 0x110000


@dataclass(frozen=True)
class LazyTensor:
    """A tensor to be written: its form now, its values when they are asked for."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @staticmethod
    def of(tensor: Tensor) -> LazyTensor:
        """Return one whose values are there."""
        return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class TensorFile:
    """An open file of tensors; each is read when it is asked for."""

    def __init__(
        self, path: Path, metadata: Mapping[str, str], keys: list[str],
        load: Callable[[str], Tensor], shape: Callable[[str], tuple[int, ...]],
    ) -> None:  # fmt: skip
        """Keep what a container offers."""
        self.path = path
        self.metadata = dict(metadata)
        self.keys = keys
        self.load = load
        self.shape = shape


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors file or a pickle of tensors.

    Pickles are read with torch's restricted loader: code in them is never run.

    Raises:
        AdapterError: The file is missing, truncated, of another kind, or holds code.
    """
    path = Path(path)
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise AdapterError(Problem(str(path), f"{path} {reason}; give a file of tensors."))
    if path.suffix in PICKLES:
        tensors = _unpickle(path)
        yield TensorFile(
            path, {}, list(tensors), tensors.__getitem__, lambda k: tuple(tensors[k].shape)
        )
        return
    try:
        file = safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        text = f"{path} cannot be read as a safetensors file ({error}); restore it or give another."
        raise AdapterError(Problem(str(path), text)) from error
    with file:
        yield TensorFile(
            path,
            file.metadata() or {},  # type: ignore[no-untyped-call]
            list(file.keys()),  # type: ignore[no-untyped-call]
            file.get_tensor,
            lambda key: tuple(file.get_slice(key).get_shape()),  # type: ignore[no-untyped-call]
        )


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors and metadata.

    Raises:
        AdapterError: As ``open_tensors``.
    """
    with open_tensors(path) as file:
        return {key: file.load(key) for key in file.keys}, file.metadata


def write(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    *,
    with_hashes: bool,
) -> None:
    """Write a file; the suffix chooses the container. Equal arguments give equal bytes.

    Args:
        path: Ends in .safetensors, or in .ckpt, .pt or .bin for a pickle without metadata.
        tensors: Values are asked for one after another.
        metadata: Of a safetensors file.
        with_hashes: Add ``sshs_model_hash`` and ``sshs_legacy_hash``, which kohya computes from
            a file with the same tensors and only the ``ss_`` metadata.

    Raises:
        AdapterError: The suffix is another, or the file system refuses.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        text = (
            f"{path} ends in {path.suffix or 'nothing'}; it must be one of {', '.join(SUFFIXES)}."
        )
        raise AdapterError(Problem(str(path), text))
    with refusals(path), replacing(path) as part, part.open("wb") as file:
        if path.suffix in PICKLES:
            torch.save({key: tensor.load() for key, tensor in tensors.items()}, file)
        else:
            _write_safetensors(file, tensors, metadata, with_hashes=with_hashes)


def kohya_hashes(path: Path) -> dict[str, str]:
    """Return ``sshs_model_hash`` of a file on disk, computed from its bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while chunk := file.read(2**20):
            digest.update(chunk)
    return {"sshs_model_hash": digest.hexdigest()}


def _write_safetensors(
    file: IO[bytes],
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    *,
    with_hashes: bool,
) -> None:
    """Write header and tensors; the hashes are put in place when all bytes have gone by."""
    assert all(isinstance(x, str) for pair in metadata.items() for x in pair), "str -> str only"
    order = sorted(tensors, key=lambda key: (_ORDER.index(tensors[key].dtype), key))
    hashes = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8} if with_hashes else {}
    header = _header(tensors, order, {**metadata, **hashes})
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    legacy = _LegacyHash(len(_header(tensors, order, kept)))
    digest = hashlib.sha256()
    file.write(header)
    for key in order:
        tensor = tensors[key].load().detach().cpu().contiguous()
        assert tuple(tensor.shape) == tensors[key].shape, f"{key} changed its shape"
        data = bytes_of(tensor)
        file.write(data)
        digest.update(data)
        legacy.update(data)
    if with_hashes:
        hashes = {"sshs_model_hash": digest.hexdigest(), "sshs_legacy_hash": legacy.hexdigest()}
        file.seek(0)
        file.write(_header(tensors, order, {**metadata, **hashes}))


def _header(
    tensors: Mapping[str, LazyTensor], order: list[str], metadata: Mapping[str, str]
) -> bytes:
    """Return length and JSON, sorted: safetensors 0.8 shuffles metadata every time."""
    content: dict[str, object] = {}
    if metadata:
        content["__metadata__"] = dict(sorted(metadata.items()))
    offset = 0
    for key in order:
        tensor = tensors[key]
        end = offset + tensor.num_bytes
        content[key] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of eight
    return len(text).to_bytes(8, "little") + text


class _LegacyHash:
    """SHA-256 of 64 KiB at offset 1 MiB of a file with another header, from the passing bytes."""

    def __init__(self, header_size: int) -> None:
        self.position = header_size
        self.digest = hashlib.sha256()

    def update(self, data: bytes | memoryview) -> None:
        begin = min(max(_HASH_START - self.position, 0), len(data))
        end = min(max(_HASH_END - self.position, 0), len(data))
        self.digest.update(data[begin:end])
        self.position += len(data)

    def hexdigest(self) -> str:
        return self.digest.hexdigest()[:8]


def bytes_of(tensor: Tensor) -> memoryview | bytes:
    """Return the bytes of a contiguous tensor on the CPU, not copied."""
    flat = tensor.reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy()) if tensor.numel() else b""  # type: ignore[arg-type]


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Say in a sentence why a file could not be written.

    Raises:
        AdapterError: The file system refused inside the block.
    """
    try:
        yield
    except OSError as error:
        text = f"{path} cannot be written: {error.strerror or error}; choose another folder."
        raise AdapterError(Problem(str(path), text)) from error


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of protocols that it then refuses
            # Files of torch 1.6 and later are read page by page, like safetensors.
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        text = (
            f"{path} holds Python objects beside tensors, which could run code; "
            "convert it to safetensors with the tool it came from."
        )
        raise AdapterError(Problem(str(path), text)) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        text = f"{path} cannot be read as a {path.suffix} file of tensors: {reason}."
        raise AdapterError(Problem(str(path), text)) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        text = f"{path} is not a flat dictionary of tensors; give an adapter file."
        raise AdapterError(Problem(str(path), text))
    return content

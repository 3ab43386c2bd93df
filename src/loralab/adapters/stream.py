"""An adapter file written module by module, so that no more than one module is in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from loralab.adapters import container
from loralab.adapters.allocation import return_freed_blocks
from loralab.adapters.container import LazyTensor
from loralab.adapters.layouts import (
    DIFFUSERS_METADATA_KEY,
    Adapter,
    pack_diffusers,
    pack_kohya,
)
from loralab.adapters.names import ModuleName
from loralab.adapters.weights import ModuleWeights
from loralab.errors import AdapterError, Problem


class AdapterStream:
    """Takes modules one by one and writes the file when all are there.

    Until then their numbers wait in an unnamed file beside it: ranks, and with them the header
    that a safetensors file begins with, may not be known before the last module.
    """

    def __init__(
        self, path: Path, *, layout: str, dtype: torch.dtype, prefixes: Mapping[str, str]
    ) -> None:
        """Make room; used as a context manager, which gives the room back.

        Args:
            path: As of ``container.write``.
            layout: ``kohya`` or ``diffusers``.
            dtype: Of every tensor, alpha included.
            prefixes: Kohya's prefix of each part.

        Raises:
            AdapterError: The file system refuses.
        """
        self.path, self.layout, self.dtype, self.prefixes = path, layout, dtype, prefixes
        self.problems: list[Problem] = []
        return_freed_blocks()
        self._tensors: dict[str, LazyTensor] = {}
        self._shapes: dict[ModuleName, ModuleWeights] = {}
        folder = next(p for p in path.absolute().parents if p.is_dir())
        with container.refusals(path):
            self._room = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed by __exit__

    @property
    def shapes(self) -> Adapter:
        """Names, shapes and alphas of the modules so far; their tensors are on the meta device."""
        return self._shapes

    def add(self, name: ModuleName, weights: ModuleWeights) -> None:
        """Take a module; a value that is not finite in the file's numbers is a problem for later.

        Raises:
            AdapterError: The layout cannot hold the kind, or the file system refuses.
        """
        module = {name: weights}
        is_kohya = self.layout == "kohya"
        packed = pack_kohya(module, self.prefixes) if is_kohya else pack_diffusers(module)[0]
        for key, tensor in packed.items():
            cast = tensor.detach().to("cpu", self.dtype).contiguous()
            if not bool(cast.isfinite().all()):
                self.problems.append(not_finite(key, self.dtype))
            self._tensors[key] = self._keep(cast)
        tensors = {role: t.to("meta") for role, t in weights.tensors.items()}
        self._shapes[name] = ModuleWeights(tensors, weights.alpha)

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the file, with this metadata and what the layout adds.

        Raises:
            AdapterError: A value was not finite, or the file system refuses.
        """
        if self.problems:
            raise AdapterError(*self.problems)
        metadata = {k: v for k, v in metadata.items() if k != DIFFUSERS_METADATA_KEY}
        if self.layout == "diffusers":
            metadata |= pack_diffusers(self._shapes)[1]
        container.write(self.path, self._tensors, metadata, with_hashes=self.layout == "kohya")

    def _keep(self, tensor: Tensor) -> LazyTensor:
        begin, shape = self._room.tell(), tuple(tensor.shape)
        with container.refusals(self.path):
            self._room.write(container.bytes_of(tensor))
        return LazyTensor(shape, self.dtype, partial(self._read, begin, shape))

    def _read(self, begin: int, shape: tuple[int, ...]) -> Tensor:
        if not (data := bytearray(torch.Size(shape).numel() * self.dtype.itemsize)):
            return torch.empty(shape, dtype=self.dtype)
        self._room.seek(begin)
        self._room.readinto(data)
        return torch.frombuffer(data, dtype=self.dtype).reshape(shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._room.close()


def not_finite(key: str, dtype: torch.dtype) -> Problem:
    """Return the problem of a tensor that the file's numbers cannot hold."""
    name = str(dtype).removeprefix("torch.")
    return Problem(key, f"{key} is not finite in {name}; nothing was written.")

"""Reading adapter files of every layout and container, module by module."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loralab.adapters.container import TensorFile, open_tensors
from loralab.adapters.layouts import (
    DIFFUSERS_METADATA_KEY,
    Entry,
    assemble,
    index,
    stored_alphas,
)
from loralab.adapters.names import ModuleName
from loralab.adapters.weights import ModuleWeights
from loralab.errors import AdapterError, Problem

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class AdapterFile:
    """An open adapter file: its modules are read one at a time.

    Attributes:
        entries: Where each module's tensors are.
        alphas: Alpha of the modules whose metadata gives it.
    """

    file: TensorFile
    entries: dict[ModuleName, Entry]
    alphas: dict[ModuleName, float]

    @property
    def metadata(self) -> dict[str, str]:
        return self.file.metadata

    def module(self, name: ModuleName) -> ModuleWeights:
        """Read one module.

        Raises:
            AdapterError: Its tensors are no complete adapter.
        """
        entry = self.entries[name]
        tensors = {role: self.file.load(key) for role, key in entry.keys.items()}
        return assemble(entry, tensors, self.alphas.get(name), source=str(self.file.path))

    def modules(self) -> Iterator[tuple[ModuleName, ModuleWeights]]:
        """Read all modules, one at a time."""
        for name in self.entries:
            yield name, self.module(name)


@contextmanager
def open_adapter(path: Path) -> Iterator[AdapterFile]:
    """Open an adapter file, or a PEFT folder.

    Raises:
        AdapterError: The file cannot be read or holds keys that are no adapter's.
    """
    path = Path(path)
    if (path / PEFT_WEIGHTS).is_file():
        path = path / PEFT_WEIGHTS
    with open_tensors(path) as file:
        metadata = dict(file.metadata)
        config = path.with_name(PEFT_CONFIG)
        if path.name == PEFT_WEIGHTS and config.is_file():
            metadata[DIFFUSERS_METADATA_KEY] = config.read_text(encoding="utf-8")
        entries = index(file.keys, source=str(path))
        yield AdapterFile(file, entries, stored_alphas(entries, metadata, source=str(path)))


def read_adapter(path: Path) -> dict[ModuleName, ModuleWeights]:
    """Return all modules of a file.

    Raises:
        AdapterError: The file cannot be read or a module is damaged; every problem is named.
    """
    adapter, problems = read_modules(path)
    if problems:
        raise AdapterError(*problems)
    return adapter


def read_modules(path: Path) -> tuple[dict[ModuleName, ModuleWeights], list[Problem]]:
    """Return the modules of a file that are whole, and the problems of the others.

    Raises:
        AdapterError: The file cannot be read at all.
    """
    adapter, problems = {}, list[Problem]()
    with open_adapter(path) as file:
        for name in file.entries:
            try:
                adapter[name] = file.module(name)
            except AdapterError as error:
                problems += error.problems
    return adapter, problems


def parse_metadata(metadata: dict[str, str]) -> dict[str, object]:
    """Return metadata with the values that are JSON parsed."""
    parsed: dict[str, object] = {}
    for key, value in metadata.items():
        try:
            parsed[key] = json.loads(value) if value[:1] in "[{" else value
        except ValueError:
            parsed[key] = value
    return parsed

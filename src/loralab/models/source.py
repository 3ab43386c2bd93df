"""Where the parts of a model are: a folder, one checkpoint file, another VAE. No torch here."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loralab.errors import ModelError, Problem
from loralab.models.family import TextLayout

KEY = "model.path"


@dataclass(frozen=True)
class ModelPlace:
    """Where a model is.

    Attributes:
        path: Folder in diffusers' layout, checkpoint file, or `owner/name` in the hub's cache.
        config_path: Folder of configs for a checkpoint file of unusual shape.
        vae_path: Folder or file of a VAE in place of the model's own.
    """

    path: str | Path
    config_path: str | Path | None = None
    vae_path: str | Path | None = None

    @classmethod
    def of(cls, place: ModelPlace | str | Path) -> ModelPlace:
        """Return a place as it is, or that of a bare path."""
        return place if isinstance(place, ModelPlace) else cls(place)


class PartSource(ABC):
    """Gives configs and weights of a model's parts, and collects what is wrong with them.

    Attributes:
        path: The folder or file.
        key: The option that named it.
        problems: Everything found wrong so far, in the order of reading; may be shared.
    """

    def __init__(
        self, path: str | Path, *, key: str = KEY, problems: list[Problem] | None = None
    ) -> None:
        self.path = Path(path)
        self.key = key
        self.problems = [] if problems is None else problems

    def report(self, message: str) -> None:
        """Keep a problem; the same one twice is still one."""
        problem = Problem(self.key, message)
        if problem not in self.problems:
            self.problems.append(problem)

    def raise_problems(self) -> None:
        """Raise ``ModelError`` with all problems found so far, if there are any."""
        if self.problems:
            raise ModelError(*self.problems)

    @abstractmethod
    def family(self) -> str | None:
        """Return the family whose layout this has; None when that cannot be told.

        Raises:
            ModelError: When it is no model at all.
        """

    @abstractmethod
    def config(self, part: str) -> dict[str, Any]:
        """Return a part's config; on a problem report it and return an empty mapping."""

    @abstractmethod
    def config_file(self, part: str) -> Path:
        """Return the file to name when a part's config is wrong."""

    @abstractmethod
    def weight_files(self, part: str) -> Sequence[Path]:
        """Return the files that hold a part's weights."""

    @abstractmethod
    def check_weights(self, part: str) -> None:
        """Report missing, pickled or incomplete weights of a part."""

    @abstractmethod
    def check_tokenizer(self, layout: TextLayout, vocab_size: int | None) -> None:
        """Report a tokenizer that is missing or of another size than the text encoder's."""


def find_model(path: str | Path) -> Path:
    """Return the folder or file that a path or hub id names.

    Raises:
        ModelError: When there is nothing on this machine.
    """
    if Path(path).exists():
        return Path(path)
    if cached := _cached_repository(str(path)):
        return cached
    message = (
        f"{KEY} is {path}, which does not exist; give a folder or file on this machine, because "
        "nothing is downloaded."
    )
    raise ModelError(Problem(KEY, message))


def _cached_repository(name: str) -> Path | None:
    """Return the folder of a hub id in the local cache, without asking the network."""
    if name.count("/") != 1 or name.startswith(("/", ".", "~")) or os.sep * 2 in name:
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None

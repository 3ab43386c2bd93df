"""From the paths of a model to the sources of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loralab.errors import ModelError, Problem
from loralab.models.checkpoint import CheckpointFile
from loralab.models.family import FamilySpec
from loralab.models.folder import ModelFolder
from loralab.models.source import ModelPlace, PartSource, find_model


@dataclass(frozen=True)
class Sources:
    """Where each part of a model comes from; both share one list of problems."""

    base: PartSource
    vae: PartSource

    def of(self, part: str) -> PartSource:
        """Return the source of one part."""
        return self.vae if part == "vae" else self.base


def open_model(place: ModelPlace | str | Path, spec: FamilySpec) -> Sources:
    """Return the sources of a model's parts.

    Raises:
        ModelError: When a path leads nowhere, or leads where it cannot be used.
    """
    place = ModelPlace.of(place)
    path = find_model(place.path)
    base: PartSource
    if path.is_dir():
        if place.config_path is not None:
            text = (
                f"model.config_path is {place.config_path}, but {path} is a folder, which has "
                "configs of its own; set model.config_path=null."
            )
            raise ModelError(Problem("model.config_path", text))
        base = ModelFolder(path)
    else:
        base = CheckpointFile(path, spec, config_path=place.config_path)
    if place.vae_path is None:
        return Sources(base, base)
    return Sources(base, _open_vae(Path(place.vae_path), spec, base))


def _open_vae(path: Path, spec: FamilySpec, base: PartSource) -> PartSource:
    key = "model.vae_path"
    if path.is_dir():
        return ModelFolder(path, key=key, problems=base.problems)
    if path.is_file():
        own = base.config("vae")  # what shapes do not tell is taken from the base's own VAE
        return CheckpointFile(path, spec, vae_config=own, key=key, problems=base.problems)
    message = f"{key} is {path}, which does not exist; give a folder or file on this machine."
    raise ModelError(Problem(key, message))

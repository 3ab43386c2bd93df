"""Files of a model folder in diffusers' layout: where they are, and what is wrong with them.

Standard library only. Weights are looked at no further than their header; pickles are never read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loralab.errors import ModelError, Problem

KEY = "model.path"
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
WEIGHT_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
CONFIG_FILES = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}


class ModelFolder:
    """One model folder; collects the problems met while it is read.

    Attributes:
        problems: Everything found wrong so far, in the order of reading.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.problems: list[Problem] = []

    def report(self, message: str) -> None:
        self.problems.append(Problem(KEY, message))

    def raise_problems(self) -> None:
        """Raise ``ModelError`` with all problems found so far, if there are any."""
        if self.problems:
            raise ModelError(*self.problems)

    def check_exists(self) -> bool:
        """Report a path that is not a folder; without it no other question makes sense."""
        if self.path.is_dir():
            return True
        if self.path.is_file():
            self.report(
                f"{KEY} is {self.path}, a file; a folder in diffusers' layout is needed. "
                "Convert the checkpoint with diffusers' `from_single_file` and `save_pretrained`."
            )
        else:
            self.report(
                f"{KEY} is {self.path}, which does not exist; give a folder on this machine, "
                "because nothing is downloaded."
            )
        return False

    def config(self, part: str) -> dict[str, Any]:
        """Return a part's config; on a problem report it and return an empty mapping."""
        return self.read_json(self.path / CONFIG_FILES[part])

    def read_json(self, file: Path) -> dict[str, Any]:
        if not file.is_file():
            self.report(f"{file} is missing; {KEY} must be a complete diffusers folder.")
            return {}
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.report(f"{file} cannot be read as JSON ({error}); restore it from its source.")
            return {}
        if not isinstance(content, dict):
            self.report(f"{file} holds no JSON object; restore it from its source.")
            return {}
        return content

    def variant(self, part: str) -> str | None:
        """Return the variant of a part's weights: None for the plain file, else e.g. ``fp16``.

        The plain file wins; of several variants the first in alphabetical order is taken.
        """
        stem = WEIGHT_STEMS[part]
        for file in self.weight_files(part):
            if file.name.startswith(stem + "."):
                return (
                    file.name.removeprefix(stem + ".").removesuffix("safetensors").rstrip(".")
                    or None
                )
        return None

    def weight_files(self, part: str) -> list[Path]:
        """Return a part's safetensors file, alone in its list, or nothing when there is none."""
        folder, stem = self.path / part, WEIGHT_STEMS[part]
        plain = folder / f"{stem}.safetensors"
        if plain.is_file():
            return [plain]
        return sorted(folder.glob(f"{stem}.*.safetensors"))[:1]

    def check_weights(self, part: str) -> None:
        """Report missing, pickled or incomplete weights of a part."""
        files = self.weight_files(part)
        if not files:
            self.report(self._missing_weights(part))
        for file in files:
            try:
                complaint = header_complaint(file)
            except OSError as error:
                self.report(f"{file} cannot be read ({error.strerror}); mend its permissions.")
                continue
            if complaint is not None:
                self.report(f"{file} {complaint}; download or convert it again.")

    def _missing_weights(self, part: str) -> str:
        wanted = self.path / part / f"{WEIGHT_STEMS[part]}.safetensors"
        shards = sorted(wanted.parent.glob("*.safetensors.index.json"))
        pickles = sorted(
            file.name for suffix in PICKLE_SUFFIXES for file in wanted.parent.glob(f"*{suffix}")
        )
        if shards:
            return f"{wanted} is split into shards; save the part again as one safetensors file."
        if pickles:
            return (
                f"{wanted} is missing and {pickles[0]} is a pickle, which is never opened; "
                "convert it to safetensors."
            )
        return f"{wanted} is missing; {KEY} must be a complete diffusers folder."


def header_complaint(file: Path) -> str | None:
    """Return what is wrong with a safetensors file as far as header and length tell, or None."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if size < 8 or header_bytes > size - 8:
            return f"is not a safetensors file or is cut off ({size} bytes)"
        try:
            header = json.loads(stream.read(header_bytes))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key[:2] != "__"]
        except (ValueError, TypeError, KeyError, AttributeError):
            return "has no readable safetensors header"
    expected = 8 + header_bytes + max(ends, default=0)
    return None if size == expected else f"has {size} bytes where its header promises {expected}"

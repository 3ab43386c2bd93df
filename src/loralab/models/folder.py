"""Files of a model folder in diffusers' layout: where they are, and what is wrong with them.

Standard library only. Weights are looked at no further than their header; pickles are never read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loralab.models.family import TextLayout
from loralab.models.source import PartSource

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"


class ModelFolder(PartSource):
    """One model folder; also the folder of a VAE alone."""

    def family(self) -> str | None:
        unet = self.config("unet")
        if not unet:
            return None
        if (self.path / "text_encoder_2").is_dir() or unet.get("addition_embed_type"):
            return "sdxl"
        return "sd2" if unet.get("use_linear_projection") else "sd1"

    def config(self, part: str) -> dict[str, Any]:
        return self.read_json(self.config_file(part))

    def config_file(self, part: str) -> Path:
        if part == "scheduler":
            return self.path / SCHEDULER_CONFIG
        return self._place(part) / "config.json"

    def read_json(self, file: Path) -> dict[str, Any]:
        """Return a file's object; on a problem report it and return an empty mapping."""
        if not file.is_file():
            self.report(f"{file} is missing; {self.key} must be a complete diffusers folder.")
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

        The plain file wins, then one variant in one file, then shards; of several variants the
        first in alphabetical order is taken.
        """
        file = self._entrance(part)
        if file is None:
            return None
        rest = file.name.removeprefix(weight_stem(part)).removesuffix(".json")
        return rest.replace(".safetensors", "").replace(".index", "").strip(".") or None

    def weight_files(self, part: str) -> list[Path]:
        """Return the safetensors files with a part's weights, or nothing when there are none."""
        file = self._entrance(part)
        if file is None or file.suffix != ".json":
            return [] if file is None else [file]
        named = self.read_json(file).get("weight_map")
        if not isinstance(named, dict) or not named:
            self.report(f"{file} names no files of weights; restore it from its source.")
            return []
        return [file.parent / name for name in sorted({Path(str(n)).name for n in named.values()})]

    def check_weights(self, part: str) -> None:
        if self._entrance(part) is None:
            self.report(self._missing_weights(part))
        for file in self.weight_files(part):
            if not file.is_file():
                self.report(f"{file} is missing, but the index of shards names it; restore it.")
                continue
            try:
                complaint = header_complaint(file)
            except OSError as error:
                self.report(f"{file} cannot be read ({error.strerror}); mend its permissions.")
                continue
            if complaint is not None:
                self.report(f"{file} {complaint}; download or convert it again.")

    def _entrance(self, part: str) -> Path | None:
        """Return the file to open a part's weights by: themselves, or an index of shards."""
        folder, stem = self._place(part), weight_stem(part)
        patterns = ("safetensors", "*.safetensors", "safetensors.index*.json")
        found = (
            file
            for pattern in patterns
            for file in sorted(folder.glob(f"{stem}.{pattern}"))
            if "-of-" not in file.name  # a shard
        )
        return next(found, None)

    def check_tokenizer(self, layout: TextLayout, vocab_size: int | None) -> None:
        tokenizer = self.path / layout.tokenizer
        vocabulary, merges, single = (
            tokenizer / name for name in ("vocab.json", "merges.txt", "tokenizer.json")
        )
        if vocabulary.is_file() and (merges.is_file() or single.is_file()):
            num_tokens = len(set(self.read_json(vocabulary)) | self._added(tokenizer))
        elif single.is_file():
            content = self.read_json(single)
            words = set(content.get("model", {}).get("vocab", {}))
            words |= {token["content"] for token in content.get("added_tokens", [])}
            num_tokens = len(words)
        else:
            missing = [str(file) for file in (vocabulary, merges) if not file.is_file()]
            self.report(
                f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing; the "
                "tokenizer needs vocab.json and merges.txt, or tokenizer.json."
            )
            return
        if vocab_size is not None and num_tokens != vocab_size:
            self.report(
                f"{tokenizer} knows {num_tokens} tokens, but the text encoder's vocab_size is "
                f"{vocab_size}; the two must come from the same model."
            )

    def _added(self, tokenizer: Path) -> set[str]:
        file = tokenizer / "added_tokens.json"
        return set(self.read_json(file)) if file.is_file() else set()

    def _place(self, part: str) -> Path:
        """Return a part's folder; a VAE alone lies in the folder that was named."""
        alone = part == "vae" and not (self.path / part).is_dir()
        return self.path if alone and (self.path / "config.json").is_file() else self.path / part

    def _missing_weights(self, part: str) -> str:
        wanted = self._place(part) / f"{weight_stem(part)}.safetensors"
        pickles = sorted(
            file.name for suffix in PICKLE_SUFFIXES for file in wanted.parent.glob(f"*{suffix}")
        )
        if pickles:
            return (
                f"{wanted} is missing and {pickles[0]} is a pickle, which is never opened; "
                "convert it to safetensors."
            )
        return f"{wanted} is missing; {self.key} must be a complete diffusers folder."


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


def weight_stem(part: str) -> str:
    """Return how the libraries name a part's weights: transformers, then diffusers."""
    return "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"

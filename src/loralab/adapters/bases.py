"""Weights of base models by module: folders in diffusers' layout and single files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from loralab.adapters.names import ModuleName, module_name, parse_kohya
from loralab.errors import AdapterError, Problem

PARTS = ("unet", "text_encoder", "text_encoder_2")
_UNET = "model.diffusion_model."
_CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
_OPEN_CLIP = {
    "cond_stage_model.model.": "text_encoder", "conditioner.embedders.1.model.": "text_encoder_2",
}  # fmt: skip
_OPEN_CLIP_NAMES = {
    "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a module's weight is in a tensor: all of it, or one third of its rows."""

    name: ModuleName
    third: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Return the module's weight, a view."""
        return tensor if self.third is None else tensor.chunk(3)[self.third]


def component_files(base: Path) -> dict[str, Path]:
    """Return the file of weights of every part of a folder, by the part's name.

    Raises:
        AdapterError: There is none, or the weights are split over several files.
    """
    found = {}
    for part in PARTS:
        files = sorted((base / part).glob("*.safetensors"))
        if len(files) > 1:
            text = f"{base / part} holds {len(files)} weight files; leave one of them."
            raise AdapterError(Problem(str(base), text))
        if files:
            found[part] = files[0]
    if not found:
        text = f"{base} holds no unet/*.safetensors; give a folder in diffusers' layout or a file."
        raise AdapterError(Problem(str(base), text))
    return found


def places(key: str, part: str | None) -> Iterator[Place]:
    """Yield the modules whose weight a tensor holds: one, three, or none.

    Args:
        key: The tensor's name.
        part: The part that a folder's file belongs to; None for a single file.
    """
    path = key.removesuffix(".weight").removesuffix(".in_proj_weight")
    if key.endswith(".in_proj_weight"):
        if (found := _open_clip(path)) is not None:
            for third, letter in enumerate("qkv"):
                inner = found.path.removesuffix(".attn") + f".self_attn.{letter}_proj"
                yield Place(ModuleName(found.part, inner), third)
        return
    if not key.endswith(".weight"):
        return
    if part is not None:
        yield Place(module_name(part, path))
    elif path.startswith(_UNET):
        name = parse_kohya("lora_unet_" + path.removeprefix(_UNET).replace(".", "_"))
        if name is not None:
            yield Place(name)
    elif prefix := next((p for p in _CLIP if path.startswith(p)), None):
        yield Place(module_name("text_encoder", path.removeprefix(prefix)))
    elif (found := _open_clip(path)) is not None:
        for theirs, ours in _OPEN_CLIP_NAMES.items():
            if found.path.endswith(theirs):
                yield Place(ModuleName(found.part, found.path.removesuffix(theirs) + ours))


def _open_clip(path: str) -> ModuleName | None:
    for prefix, part in _OPEN_CLIP.items():
        if match := re.match(re.escape(prefix) + r"transformer\.resblocks\.(\d+)\.(.+)", path):
            return ModuleName(part, f"encoder.layers.{match[1]}.{match[2]}")
    return None

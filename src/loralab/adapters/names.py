"""Module names in adapter files, both directions, from the names alone: no model is needed.

A module is (part, path): ``("unet", "mid_block.attentions.0.proj_in")``. Paths of text encoders
leave out the level ``text_model``, which transformers 5 dropped from one of its two classes.
kohya writes the prefix of the part and the path with underscores; of SDXL's UNet it writes the
path that the original (SGM) code gives the module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

SD1_PREFIXES: Mapping[str, str] = {"unet": "lora_unet", "text_encoder": "lora_te"}
SDXL_PREFIXES: Mapping[str, str] = {
    "unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2",
}  # fmt: skip
_PARTS = {"lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder",
          "lora_te2": "text_encoder_2"}  # fmt: skip

# Names with an underscore of their own; any other underscore of a flat name was a dot.
_COMPOUNDS = frozenset(
    [
        "down_blocks",
        "up_blocks",
        "mid_block",
        "transformer_blocks",
        "conv_in",
        "conv_out",
        "conv_shortcut",
        "time_emb_proj",
        "time_embedding",
        "add_embedding",
        "linear_1",
        "linear_2",
        "proj_in",
        "proj_out",
        "to_q",
        "to_k",
        "to_v",
        "to_out",
        "text_model",
        "text_projection",
        "self_attn",
        "q_proj",
        "k_proj",
        "v_proj",
        "out_proj",
        "token_embedding",
        "position_embedding",
        "final_layer_norm",
    ]
)
_RESNET = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
           "conv_shortcut": "skip_connection"}  # fmt: skip
_RESNET_BACK = {inner.replace(".", "_"): outer for outer, inner in _RESNET.items()}


class ModuleName(NamedTuple):
    """One module of one part."""

    part: str
    path: str

    def __str__(self) -> str:
        return f"{self.part}.{self.path}"


def module_name(part: str, path: str) -> ModuleName:
    """Return the name of a module, given its path in a live model or in a file."""
    return ModuleName(part, path.removeprefix("text_model."))


def kohya_name(name: ModuleName, prefixes: Mapping[str, str]) -> str:
    """Return the flat name of a module; SDXL's UNet has SGM names.

    Args:
        name: The module.
        prefixes: Kohya's prefix of each part; those of two text encoders mean SDXL.
    """
    path = name.path
    if name.part != "unet":
        path = f"text_model.{path}"
    elif "text_encoder_2" in prefixes:
        path = sgm_path(path)
    return f"{prefixes[name.part]}_{path}".replace(".", "_")


def dotted_name(name: ModuleName) -> str:
    """Return the name in a diffusers file: the part and the path in the live model."""
    level = "text_model." if name.part == "text_encoder_2" else ""
    return f"{name.part}.{level}{name.path}"


def parse_kohya(flat: str) -> ModuleName | None:
    """Return the module of a flat name, whichever of its spellings; None is not such a name."""
    for prefix in sorted(_PARTS, key=len, reverse=True):
        if flat.startswith(f"{prefix}_"):
            rest = flat.removeprefix(f"{prefix}_")
            if prefix == "lora_unet":
                return ModuleName("unet", _from_sgm(rest) or _unflatten(rest))
            return module_name(_PARTS[prefix], _unflatten(rest))
    return None


def parse_dotted(dotted: str) -> ModuleName | None:
    """Return the module of a diffusers or PEFT name; None is not such a name."""
    dotted = dotted.removeprefix("base_model.model.")
    part, _, path = dotted.partition(".")
    if part in ("unet", "text_encoder", "text_encoder_2"):
        return module_name(part, path)
    if part in ("down_blocks", "up_blocks", "mid_block", "conv_in", "conv_out"):
        return ModuleName("unet", dotted)
    if part in ("text_model", "encoder"):
        return module_name("text_encoder", dotted)
    return None


def sgm_path(path: str) -> str:
    """Return the path that the original SDXL code gives a UNet module of diffusers."""
    match = re.match(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)(?:\.(.+))?$", path)
    if match is None:
        return path
    section, block, kind, number = match[1], int(match[2] or 0), match[3], int(match[4])
    inner = match[5] or ""
    if kind == "resnets":
        inner = _RESNET.get(inner, inner)
    if section == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{inner}"
    if kind == "downsamplers":
        return f"input_blocks.{3 * (block + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{3 * block + 2}.2.conv"
    side = 1 if kind == "attentions" else 0
    if section == "down":
        return f"input_blocks.{3 * block + number + 1}.{side}.{inner}"
    return f"output_blocks.{3 * block + number}.{side}.{inner}"


def _from_sgm(flat: str) -> str | None:
    """Return diffusers' path of a flattened SGM path; None is not one."""
    match = re.match(r"(input|middle|output)_blocks?_(\d+)_(.+)$", flat)
    if match is None:
        return None
    section, number, rest = match[1], int(match[2]), match[3]
    if section == "middle":
        kind, inner = ("attentions.0", rest) if number == 1 else (f"resnets.{number // 2}", rest)
        return f"mid_block.{kind}.{_inner(kind, inner)}"
    side, _, inner = rest.partition("_")
    if section == "input":
        block, place = divmod(number - 1, 3)
        if inner == "op":
            return f"down_blocks.{block}.downsamplers.0.conv"
        kind = f"{'attentions' if side == '1' else 'resnets'}.{place}"
        return f"down_blocks.{block}.{kind}.{_inner(kind, inner)}"
    block, place = divmod(number, 3)
    if inner == "conv":
        return f"up_blocks.{block}.upsamplers.0.conv"
    kind = f"{'attentions' if side == '1' else 'resnets'}.{place}"
    return f"up_blocks.{block}.{kind}.{_inner(kind, inner)}"


def _inner(kind: str, flat: str) -> str:
    if kind.startswith("resnets"):
        return _RESNET_BACK.get(flat, _unflatten(flat))
    return _unflatten(flat)


def _unflatten(flat: str) -> str:
    """Put the dots back: the longest known name first, else one word at a time."""
    words, path = flat.split("_"), []
    while words:
        size = next(n for n in (3, 2, 1) if n == 1 or "_".join(words[:n]) in _COMPOUNDS)
        path.append("_".join(words[:size]))
        words = words[size:]
    return ".".join(path)

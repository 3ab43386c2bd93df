"""Tiny folders as one file in the layout of LDM (SD1, SD2) or SGM (SDXL).

Written from CompVis' and Stability's module names; nothing of ours takes part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
PLAIN = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}


def single_file(folder: Path, family: str) -> dict[str, Tensor]:
    """Return all tensors of a folder under the names of the one-file layout."""
    config = json.loads((folder / "unet/config.json").read_text())
    unet, vae = (
        load_file(folder / part / "diffusion_pytorch_model.safetensors") for part in ("unet", "vae")
    )
    texts = {
        part.name: load_file(part / "model.safetensors") for part in folder.glob("text_encoder*")
    }
    names = unet_names(config["layers_per_block"], config["down_block_types"])
    tensors = {"model.diffusion_model." + _renamed(key, names): t for key, t in unet.items()}
    tensors |= {"first_stage_model." + key: t for key, t in vae_tensors(vae).items()}
    if family == "sd1":
        tensors |= _clip(texts["text_encoder"], "cond_stage_model.transformer.text_model.")
        # Merged models carry this as a float; nothing may depend on it.
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.zeros(
            1, 77
        )
    elif family == "sd2":
        tensors |= _with_last_layer(open_clip(texts["text_encoder"], "cond_stage_model.model."))
    else:
        first, second = "conditioner.embedders.0.transformer.text_model.", "embedders.1.model."
        tensors |= _clip(texts["text_encoder"], first)
        tensors |= open_clip(texts["text_encoder_2"], "conditioner." + second)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def unet_names(layers: int, down_types: list[str]) -> dict[str, str]:
    """Return the one-file name of every block, by the name that diffusers gives it."""
    names, number, levels = dict(PLAIN), 1, len(down_types)
    for level in range(levels):
        for layer in range(layers):
            names[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if level < levels - 1:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    for level, kind in enumerate(reversed(down_types)):
        for layer in range(layers + 1):
            number = level * (layers + 1) + layer
            names[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            names[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
        place = 2 if kind.startswith("CrossAttn") else 1
        names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number}.{place}.conv"
    return names


def _renamed(key: str, names: dict[str, str]) -> str:
    found = max((old for old in names if key.startswith(old + ".")), key=len)
    rest = key.removeprefix(found)
    if ".resnets." in found:
        inner = rest.split(".")[1]
        rest = rest.replace(f".{inner}", f".{RESNET[inner]}", 1)
    return names[found] + rest


def vae_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an autoencoder's tensors under CompVis' names."""
    levels = 1 + max(int(match[1]) for match in _matches(r"decoder\.up_blocks\.(\d+)", tensors))
    result = {}
    for key, tensor in tensors.items():
        name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", key)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        for old, new in (
            ("down_blocks", "down"), (".resnets.", ".block."), ("downsamplers.0", "downsample"),
            ("upsamplers.0", "upsample"), ("conv_shortcut", "nin_shortcut"),
            ("conv_norm_out", "norm_out"), ("mid_block.attentions.0", "mid.attn_1"),
            ("group_norm", "norm"), ("to_out.0", "proj_out"), ("to_q", "q"), ("to_k", "k"),
            ("to_v", "v"),
        ):  # fmt: skip
            name = name.replace(old, new)
        is_projection = "attn_1" in name and tensor.dim() == 2
        result[name] = tensor[:, :, None, None] if is_projection else tensor
    return result


def open_clip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return a text encoder's tensors under OpenCLIP's names: the projections as one tensor."""
    result = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("text_model.")
        if name == "text_projection.weight":
            result[prefix + "text_projection"] = tensor.T
            continue
        for old, new in OPEN_CLIP.items():
            name = name.replace(old, new)
        if match := re.match(r"(.*\.attn)\.q_proj\.(weight|bias)", name):
            parts = [tensors[key.replace("q_proj", f"{kind}_proj")] for kind in "qkv"]
            result[f"{prefix}{match[1]}.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"\.attn\.[kv]_proj\.", name):
            result[prefix + name] = tensor
    return result


def _with_last_layer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add what SD2's files have and nobody reads: a last layer, and the projection."""
    last = {
        key.replace("resblocks.1.", "resblocks.2."): torch.randn_like(tensor)
        for key, tensor in tensors.items()
        if "resblocks.1." in key
    }
    prefix = "cond_stage_model.model."
    width = tensors[prefix + "token_embedding.weight"].shape[1]
    extra = {"text_projection": torch.randn(width, width), "logit_scale": torch.tensor(4.6)}
    return tensors | last | {prefix + name: tensor for name, tensor in extra.items()}


def _clip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in tensors.items()}


def _matches(pattern: str, tensors: dict[str, Tensor]) -> Iterator[re.Match[str]]:
    return (match for key in tensors if (match := re.search(pattern, key)))

"""What the shapes in an LDM or SGM checkpoint say about the configs of its parts.

A config begins as the family's own and takes from the file whatever shapes can tell: widths,
depths, which blocks have attention. Numbers of heads cannot be told from shapes and follow the
family's rule: 8 heads in SD1's UNet, 64 features a head everywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
HEAD_WIDTH = 64


def unet_config(shapes: Shapes, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return a UNet's config; ``shapes`` are named as below ``model.diffusion_model.``."""
    levels = _levels(shapes, "input_blocks", ends=".0.op.weight")
    rising = _levels(shapes, "output_blocks", ends=".conv.weight")
    depths = [_depths(shapes, "input_blocks", blocks) for blocks in levels]
    rising_depths = [_depths(shapes, "output_blocks", blocks) for blocks in rising]
    widths = [
        shapes[f"input_blocks.{blocks[-1]}.0.out_layers.3.weight"][0] for blocks in levels if blocks
    ]
    config = {
        **base,
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": max(len(blocks) for blocks in levels),
        "down_block_types": [
            "CrossAttnDownBlock2D" if any(level) else "DownBlock2D" for level in depths
        ],
        "up_block_types": [
            "CrossAttnUpBlock2D" if any(level) else "UpBlock2D" for level in rising_depths
        ],
    }
    if isinstance(base["attention_head_dim"], list):
        config["attention_head_dim"] = [max(1, width // HEAD_WIDTH) for width in widths]
    if context := _first(shapes, r"attn2\.to_k\.weight$"):
        config["cross_attention_dim"] = context[1]
    if projection := _first(shapes, r"\.1\.proj_in\.weight$"):
        is_linear = len(projection) == 2
        if is_linear != base.get("use_linear_projection", False):
            config["use_linear_projection"] = is_linear
    if "label_emb.0.0.weight" in shapes:
        config["projection_class_embeddings_input_dim"] = shapes["label_emb.0.0.weight"][1]
    middle = _count(shapes, "middle_block.1.transformer_blocks")
    return config | _transformer_depths(depths, rising_depths, middle, base)


def vae_config(shapes: Shapes, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return a VAE's config; ``shapes`` are as below ``first_stage_model.``, or as in diffusers."""
    level, block = "encoder.down", "block"
    if _count(shapes, "encoder.down_blocks"):
        level, block = "encoder.down_blocks", "resnets"
    num_levels = _count(shapes, level)
    widths = [shapes[f"{level}.{i}.{block}.0.conv2.weight"][0] for i in range(num_levels)]
    return {
        **base,
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * num_levels,
        "up_block_types": ["UpDecoderBlock2D"] * num_levels,
        "layers_per_block": _count(shapes, f"{level}.0.{block}"),
    }


def clip_config(shapes: Shapes, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return a CLIP text encoder's config; names as in transformers, without ``text_model.``."""
    width = shapes["embeddings.token_embedding.weight"][1]
    return {
        **base,
        "vocab_size": shapes["embeddings.token_embedding.weight"][0],
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, "encoder.layers"),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
    }


def open_clip_config(shapes: Shapes, base: Mapping[str, Any], *, shortened: bool) -> dict[str, Any]:
    """Return the config of an OpenCLIP text encoder.

    Args:
        shortened: The family leaves out layers at the end (SD2 the last); a file may have them.
    """
    width = shapes["token_embedding.weight"][1]
    num_layers = _count(shapes, "transformer.resblocks")
    if shortened:
        num_layers = min(num_layers, base["num_hidden_layers"])
    config = {
        **base,
        "vocab_size": shapes["token_embedding.weight"][0],
        "max_position_embeddings": shapes["positional_embedding"][0],
        "hidden_size": width,
        "intermediate_size": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": min(num_layers, base["num_hidden_layers"])
        if shortened
        else num_layers,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
    }
    if "text_projection" in shapes:
        config["projection_dim"] = shapes["text_projection"][1]
    return config


def below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes whose names start with a prefix, without it."""
    return {
        name.removeprefix(prefix): shape
        for name, shape in shapes.items()
        if name.startswith(prefix)
    }


def _levels(shapes: Shapes, side: str, *, ends: str) -> list[list[int]]:
    """Return the numbers of the blocks with a resnet, level by level."""
    levels: list[list[int]] = [[]]
    for number in range(_count(shapes, side)):
        block = f"{side}.{number}"
        if f"{block}.0.in_layers.2.weight" in shapes:
            levels[-1].append(number)
        if any(name.startswith(block + ".") and name.endswith(ends) for name in shapes):
            levels.append([])
    return [level for level in levels if level]


def _depths(shapes: Shapes, side: str, blocks: Sequence[int]) -> list[int]:
    return [_count(shapes, f"{side}.{number}.1.transformer_blocks") for number in blocks]


def _transformer_depths(
    down: list[list[int]], up: list[list[int]], middle: int, base: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields for depths; a pruned model may have another one in every block."""
    config: dict[str, Any] = {}
    if not middle:
        config["mid_block_type"] = "UNetMidBlock2D"
    plain = all(len(set(level)) == 1 for level in [*down, *up])
    mirrored = [level[0] for level in up] == [level[0] for level in reversed(down)]
    if plain and mirrored and middle in (0, down[-1][0] or 1):
        depths = [max(1, level[0]) for level in down]
        if "transformer_layers_per_block" in base or set(depths) != {1}:
            config["transformer_layers_per_block"] = depths
        return config
    config["transformer_layers_per_block"] = down
    config["reverse_transformer_layers_per_block"] = up
    return config


def _count(shapes: Shapes, prefix: str) -> int:
    """Return how many numbers follow a prefix."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    found = {int(match[1]) for name in shapes if (match := pattern.match(name))}
    return max(found) + 1 if found else 0


def _first(shapes: Shapes, pattern: str) -> tuple[int, ...] | None:
    return next((shape for name, shape in shapes.items() if re.search(pattern, name)), None)

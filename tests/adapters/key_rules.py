"""What a kohya file must hold by sd-scripts' rules (networks/lora.py), and what ours holds.

The rules go by the classes that contain a layer, ours by names; SDXL's names are diffusers' table.
Networks have their real sizes and are on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from loralab.adapters.export import live_adapter, write_weights
from loralab.adapters.inject import inject
from loralab.adapters.spec import AdapterSpec
from loralab.adapters.weights import ModuleWeights
from loralab.models.registry import family_spec
from tests.adapters.reloading import PREFIXES, flat
from tests.adapters.test_adapter_names import PARTS

FAMILIES = ("sd1", "sd2", "sdxl")
RANK, CONV_RANK = 8, 3
TEXT_CLASSES = ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")
UNET_CLASSES = ("Transformer2DModel",)
CONV_CLASSES = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
Shapes = dict[str, tuple[int, ...]]


def networks(family: str) -> dict[str, nn.Module]:
    with torch.device("meta"):
        return {part: make() for (name, part), make in PARTS.items() if name == family}


def expected(family: str, *, has_conv: bool, rank: int = RANK) -> Shapes:
    """Return shapes by key, as the rules have them."""
    shapes: Shapes = {}
    for part, network in networks(family).items():
        classes = TEXT_CLASSES if part != "unet" else UNET_CLASSES
        classes += CONV_CLASSES if has_conv and part == "unet" else ()
        for path, layer in _contained(network, classes):
            name = flat(part, path, is_sdxl=family == "sdxl")
            kernel = tuple(layer.kernel_size) if isinstance(layer, nn.Conv2d) else ()
            own = CONV_RANK if kernel not in ((), (1, 1)) else rank
            width, height = layer.weight.shape[1], layer.weight.shape[0]
            shapes[f"{name}.alpha"] = ()
            shapes[f"{name}.lora_down.weight"] = (own, width, *kernel)
            shapes[f"{name}.lora_up.weight"] = (height, own, *[1] * len(kernel))
    return shapes


def written(family: str, folder: Path, *, has_conv: bool) -> tuple[Shapes, set[str]]:
    """Return shapes by key of a file that we write in half precision, and its number formats."""
    parts, preset = networks(family), "full" if has_conv else "sd_scripts"
    for part, network in parts.items():
        targets = family_spec(family).targets[part][preset]
        inject(network, AdapterSpec("lora", RANK, 5.0, 0.0, targets, conv_rank=CONV_RANK),
               part=part)  # fmt: skip
    adapter = {
        name: ModuleWeights(
            {role: torch.zeros(t.shape) for role, t in weights.tensors.items()}, weights.alpha
        )
        for name, weights in live_adapter(parts).items()
    }
    path = folder / f"{family}-{preset}.safetensors"
    write_weights(path, adapter, layout="kohya", dtype=torch.float16, metadata={},
                  prefixes=PREFIXES[family])  # fmt: skip
    with safe_open(path, framework="pt") as file:
        pieces = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  no dictionary
        return (
            {key: tuple(piece.get_shape()) for key, piece in pieces.items()},
            {piece.get_dtype() for piece in pieces.values()},
        )


def _contained(network: nn.Module, classes: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """Yield every Linear and Conv2d inside a container of one of these classes."""
    for root, container in network.named_modules():
        if type(container).__name__ in classes:
            for path, layer in container.named_modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    yield f"{root}.{path}", layer

"""Kohya's module names, both directions, for UNets and CLIP text encoders named as diffusers does.

``lora_unet_`` + the dotted path with every dot replaced by an underscore. SDXL's UNet has other
names in these files; they are not here yet.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from loralab.adapters.layers import adaptable_modules

SD1_PREFIXES: Mapping[str, str] = {"unet": "lora_unet", "text_encoder": "lora_te"}


def kohya_names(module: nn.Module, prefix: str) -> dict[str, str]:
    """Return kohya's name of every module that an adapter could sit on, by its dotted path."""
    level = missing_level(module)
    names = {
        path: f"{prefix}_{level}{path}".replace(".", "_") for path, _ in adaptable_modules(module)
    }
    assert len(set(names.values())) == len(names), "two modules share a name in kohya's spelling"
    return names


def module_paths(module: nn.Module, prefix: str) -> dict[str, str]:
    """Return the dotted path of every module that an adapter could sit on, by kohya's name."""
    return {name: path for path, name in kohya_names(module, prefix).items()}


def missing_level(module: nn.Module) -> str:
    """Return the ``text_model.`` that file names contain and the module tree may lack.

    transformers 5 dropped that level from CLIPTextModel; CLIPTextModelWithProjection kept it.
    """
    children = dict(module.named_children())
    lacks_level = {"embeddings", "encoder", "final_layer_norm"} <= children.keys()
    return "text_model." if lacks_level and "text_model" not in children else ""

"""What ships with the package has the published sizes; presets meet the known modules."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from loralab.models.checkpoint import SHIPPED
from loralab.models.specs import SPECS, family_spec

# Parameters as published with the models, and as `num_parameters()` of the real ones gives.
PARAMETERS = {
    ("sd1", "unet"): 859_520_964,
    ("sd1", "vae"): 83_653_863,
    ("sd1", "text_encoder"): 123_060_480,
    ("sd2", "unet"): 865_910_724,
    ("sd2", "text_encoder"): 340_387_840,
    ("sdxl", "unet"): 2_567_463_684,
    ("sdxl", "text_encoder"): 123_060_480,
    ("sdxl", "text_encoder_2"): 694_659_840,
}
# (UNet default, UNet with convolutions, every text encoder), as sd-scripts reports them.
MODULES = {
    "sd1": (192, 278, [72]),
    "sd2": (192, 278, [138]),
    "sdxl": (722, 788, [72, 192]),
}


def network(family: str, part: str) -> Any:
    """Return a full-size part without memory."""
    config = json.loads((SHIPPED / family / part / "config.json").read_text())
    with torch.device("meta"):
        if part == "unet":
            return UNet2DConditionModel.from_config(config)
        if part == "vae":
            return AutoencoderKL.from_config(config)
        pooled = config["architectures"] == ["CLIPTextModelWithProjection"]
        cls = CLIPTextModelWithProjection if pooled else CLIPTextModel
        return cls(CLIPTextConfig(**config))


def hits(module: nn.Module, targets: tuple[str, ...]) -> int:
    return sum(
        isinstance(layer, nn.Linear | nn.Conv2d)
        and any(name.endswith("." + target) for target in targets)
        for name, layer in module.named_modules()
    )


@pytest.mark.parametrize(("family", "part"), PARAMETERS)
def test_shipped_configs_have_the_published_number_of_weights(family: str, part: str) -> None:
    found = sum(parameter.numel() for parameter in network(family, part).parameters())
    assert found == PARAMETERS[family, part]


@pytest.mark.parametrize("family", SPECS)
def test_presets_meet_the_known_number_of_modules_at_full_size(family: str) -> None:
    spec, (plain, with_convolutions, texts) = family_spec(family), MODULES[family]
    unet = network(family, "unet")
    assert hits(unet, spec.targets["unet"]["sd_scripts"]) == plain
    assert hits(unet, spec.targets["unet"]["full"]) == with_convolutions
    found = [
        hits(network(family, part), spec.targets[part]["sd_scripts"]) for part in spec.text_parts
    ]
    assert found == texts


def test_licences_lie_beside_the_vocabulary() -> None:
    licences = sorted(file.name for file in (SHIPPED / "clip/licenses").iterdir())
    assert licences == ["MIT-CLIP.txt", "MIT-open_clip.txt"]
    assert "clip/merges.txt" in (SHIPPED / "CREDITS.md").read_text(encoding="utf-8")

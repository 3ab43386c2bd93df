"""Names in files: against the rules and counts of sd-scripts, at the models' real sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from loralab.adapters.layers import adaptable_modules
from loralab.adapters.layouts import live_name
from loralab.adapters.names import (
    SD1_PREFIXES,
    SDXL_PREFIXES,
    ModuleName,
    dotted_name,
    kohya_name,
    parse_dotted,
    parse_kohya,
)
from loralab.adapters.targets import match_targets
from tests.adapters.adapted import CONVOLUTIONS, SD_SCRIPTS_TEXT_ENCODER, SD_SCRIPTS_UNET

FULL = (*SD_SCRIPTS_UNET, *CONVOLUTIONS, "upsamplers.0.conv")


def clip(layers: int, width: int, projecting: bool = False) -> nn.Module:
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, projection_dim=1280,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projecting else CLIPTextModel)(config)


SD1_UNET = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD2_UNET = {
    "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}  # fmt: skip
SDXL_UNET = {
    "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
PARTS: dict[tuple[str, str], Callable[[], nn.Module]] = {
    ("sd1", "unet"): lambda: UNet2DConditionModel(**SD1_UNET),
    ("sd1", "text_encoder"): lambda: clip(12, 768),
    ("sd2", "unet"): lambda: UNet2DConditionModel(**SD2_UNET),
    ("sd2", "text_encoder"): lambda: clip(23, 1024),
    ("sdxl", "unet"): lambda: UNet2DConditionModel(**SDXL_UNET),
    ("sdxl", "text_encoder"): lambda: clip(12, 768),
    ("sdxl", "text_encoder_2"): lambda: clip(32, 1280, projecting=True),
}
# (family, part) -> modules by default and with convolutions, as sd-scripts counts them.
COUNTS = {
    ("sd1", "unet"): (192, 278), ("sd1", "text_encoder"): (72, 72),
    ("sd2", "unet"): (192, 278), ("sd2", "text_encoder"): (138, 138),
    ("sdxl", "unet"): (722, 788), ("sdxl", "text_encoder"): (72, 72),
    ("sdxl", "text_encoder_2"): (192, 192),
}  # fmt: skip


@pytest.fixture(scope="module")
def skeleton() -> Callable[[str, str], nn.Module]:
    made: dict[tuple[str, str], nn.Module] = {}

    def build(family: str, part: str) -> nn.Module:
        if (family, part) not in made:
            with torch.device("meta"):
                made[family, part] = PARTS[family, part]()
        return made[family, part]

    return build


def names(module: nn.Module, part: str, targets: tuple[str, ...]) -> list[ModuleName]:
    hits = match_targets(module, targets)
    paths = dict.fromkeys(path for found in hits.values() for path in found)
    return [live_name(part, path) for path in paths]


@pytest.mark.parametrize(("family", "part"), list(PARTS))
def test_modules_are_as_many_as_sd_scripts_adapts_and_every_name_leads_back(
    skeleton: Callable[[str, str], nn.Module], family: str, part: str
) -> None:
    module = skeleton(family, part)
    default = SD_SCRIPTS_UNET if part == "unet" else SD_SCRIPTS_TEXT_ENCODER
    full = FULL if part == "unet" else SD_SCRIPTS_TEXT_ENCODER
    assert (len(names(module, part, default)), len(names(module, part, full))) == COUNTS[
        family, part
    ]
    prefixes = SDXL_PREFIXES if family == "sdxl" else SD1_PREFIXES
    everything = [live_name(part, path) for path, _ in adaptable_modules(module)]
    for spelled, parse in (
        ([kohya_name(name, prefixes) for name in everything], parse_kohya),
        ([kohya_name(name, SD1_PREFIXES | {part: prefixes[part]}) for name in everything],
         parse_kohya),
        ([dotted_name(name) for name in everything], parse_dotted),
    ):  # fmt: skip
        assert len(set(spelled)) == len(everything)
        assert [parse(text) for text in spelled] == everything


@pytest.mark.parametrize(
    ("part", "path", "flat"),
    [
        ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
         "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"),
        ("unet", "down_blocks.2.attentions.1.proj_out", "lora_unet_input_blocks_8_1_proj_out"),
        ("unet", "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj",
         "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj"),
        ("unet", "mid_block.resnets.1.time_emb_proj", "lora_unet_middle_block_2_emb_layers_1"),
        ("unet", "up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_out.0",
         "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_out_0"),
        ("unet", "down_blocks.0.downsamplers.0.conv", "lora_unet_input_blocks_3_0_op"),
        ("unet", "up_blocks.0.upsamplers.0.conv", "lora_unet_output_blocks_2_2_conv"),
        ("unet", "up_blocks.2.resnets.0.conv_shortcut",
         "lora_unet_output_blocks_6_0_skip_connection"),
        ("unet", "down_blocks.0.resnets.0.conv1", "lora_unet_input_blocks_1_0_in_layers_2"),
        ("unet", "down_blocks.0.resnets.1.conv2", "lora_unet_input_blocks_2_0_out_layers_3"),
        ("text_encoder", "encoder.layers.0.self_attn.q_proj",
         "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"),
        ("text_encoder_2", "text_model.encoder.layers.31.mlp.fc2",
         "lora_te2_text_model_encoder_layers_31_mlp_fc2"),
    ],
)  # fmt: skip
def test_sdxl_names_are_those_of_the_original_code(part: str, path: str, flat: str) -> None:
    name = live_name(part, path)
    assert kohya_name(name, SDXL_PREFIXES) == flat
    assert parse_kohya(flat) == name


@pytest.mark.parametrize(
    ("part", "path", "flat"),
    [
        ("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
         "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"),
        ("unet", "mid_block.attentions.0.transformer_blocks.0.ff.net.2",
         "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2"),
        ("text_encoder", "encoder.layers.11.mlp.fc2",
         "lora_te_text_model_encoder_layers_11_mlp_fc2"),
    ],
)  # fmt: skip
def test_sd1_and_sd2_names_are_diffusers_paths(part: str, path: str, flat: str) -> None:
    assert kohya_name(live_name(part, path), SD1_PREFIXES) == flat


def test_original_sdxl_attention_lies_where_it_is_known_to_lie(
    skeleton: Callable[[str, str], nn.Module],
) -> None:
    # Attention sits at input blocks 4, 5 (2 layers each) and 7, 8 (10), the middle (10) and output
    # blocks 0 to 2 (10) and 3 to 5 (2); ten modules a layer and two around them.
    module = skeleton("sdxl", "unet")
    flat = [kohya_name(name, SDXL_PREFIXES) for name in names(module, "unet", SD_SCRIPTS_UNET)]
    depth = {"input_blocks_4_1": 2, "input_blocks_5_1": 2, "input_blocks_7_1": 10,
             "input_blocks_8_1": 10, "middle_block_1": 10, "output_blocks_0_1": 10,
             "output_blocks_1_1": 10, "output_blocks_2_1": 10, "output_blocks_3_1": 2,
             "output_blocks_4_1": 2, "output_blocks_5_1": 2}  # fmt: skip
    for place, layers in depth.items():
        found = [name for name in flat if name.startswith(f"lora_unet_{place}_")]
        assert len(found) == 10 * layers + 2
    assert len(flat) == sum(10 * layers + 2 for layers in depth.values())


@pytest.mark.parametrize("text", ["lora_unetdown", "vae.conv_in", "random.key", "lora_te3_x"])
def test_other_names_are_no_module(text: str) -> None:
    assert parse_kohya(text) is None
    assert parse_dotted(text) is None

"""A file loaded by diffusers into a fresh pipeline gives the trained model's output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from loralab.adapters.export import loading_limits, verify_file, write_adapter
from loralab.adapters.inject import inject
from loralab.adapters.layers import adapter_layers
from tests.adapters.adapted import (
    CONVOLUTIONS,
    SD_SCRIPTS_TEXT_ENCODER,
    SD_SCRIPTS_UNET,
    lora,
    randomize,
    run_text_encoder,
    run_unet,
)
from tests.tiny import make_tiny_sd1

UNET_TARGETS = (*SD_SCRIPTS_UNET, *CONVOLUTIONS, "upsamplers.0.conv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd1(tmp_path_factory.mktemp("base") / "sd1")


def load(folder: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def parts_of(pipeline: StableDiffusionPipeline) -> dict[str, nn.Module]:
    return {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}


def outputs(pipeline: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    return {
        "unet": run_unet(pipeline.unet),
        "text_encoder": run_text_encoder(pipeline.text_encoder),
        "latents": torch.as_tensor(
            pipeline(
                "blue circle",
                num_inference_steps=2,
                height=64,
                width=64,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
            ).images
        ),
    }


def largest_difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return max(float((one[key] - two[key]).abs().max()) for key in one)


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize(
    ("rank", "alpha"),
    [(4, 7.0), (4, 8), (3, 1.3), (4, 4.0)],
    ids=["7/4", "int 8/4", "1.3/3", "4/4"],
)
def test_loaded_file_gives_exactly_the_output_of_the_live_model(
    tmp_path: Path, folder: Path, layout: str, rank: int, alpha: float
) -> None:
    live = load(folder)
    base = outputs(live)
    inject(live.unet, lora(*UNET_TARGETS, rank=rank, alpha=alpha), part="unet")
    inject(live.text_encoder, lora(*SD_SCRIPTS_TEXT_ENCODER, rank=2, alpha=5), part="text_encoder")
    assert any("resnets" in name for name in adapter_layers(live.unet))
    for module in parts_of(live).values():
        randomize(module)
    trained = outputs(live)
    file = tmp_path / "a.safetensors"
    write_adapter(file, parts_of(live), layout=layout, dtype=torch.float32, metadata={"ss_a": "b"})
    assert verify_file(file, parts_of(live)) == pytest.approx(0.0, abs=1e-7)

    fresh = load(folder)
    fresh.load_lora_weights(file)
    assert len(adapter_layers(fresh.unet)) == len(adapter_layers(live.unet))
    for key in base:
        assert float((trained[key] - base[key]).abs().max()) > 0.01  # the adapter does something
    assert largest_difference(outputs(fresh), trained) == 0.0


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_file_of_one_part_leaves_the_other_part_as_it_was(
    tmp_path: Path, folder: Path, layout: str, part: str
) -> None:
    live = load(folder)
    inject(
        parts_of(live)[part],
        lora("to_q", "to_k") if part == "unet" else lora("out_proj", "fc1"),
        part=part,
    )
    randomize(parts_of(live)[part])
    file = tmp_path / "a.safetensors"
    write_adapter(file, parts_of(live), layout=layout, dtype=torch.float32, metadata={})
    fresh = load(folder)
    fresh.load_lora_weights(file)
    assert largest_difference(outputs(fresh), outputs(live)) == 0.0


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_module_with_a_scale_of_its_own_is_loaded_exactly(
    tmp_path: Path, folder: Path, layout: str
) -> None:
    live = load(folder)
    inject(live.unet, lora("to_q", "to_k", "proj_in"), part="unet")
    randomize(live.unet)
    layer = adapter_layers(live.unet)["down_blocks.0.attentions.0.proj_in"]
    layer.scaling["default"] *= 2.0
    file = tmp_path / "a.safetensors"
    write_adapter(file, parts_of(live), layout=layout, dtype=torch.float32, metadata={})
    assert verify_file(file, parts_of(live)) == 0.0
    fresh = load(folder)
    fresh.load_lora_weights(file)
    assert largest_difference(outputs(fresh), outputs(live)) == 0.0


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize(
    "targets", [("fc1",), ("k_proj",), ("k_proj", "fc1"), ("out_proj",), ("out_proj", "fc2")]
)
def test_limits_of_the_library_are_foretold_exactly(
    tmp_path: Path, folder: Path, layout: str, targets: tuple[str, ...]
) -> None:
    live = load(folder)
    inject(live.text_encoder, lora(*targets), part="text_encoder")
    randomize(live.text_encoder)
    file = tmp_path / "a.safetensors"
    write_adapter(file, parts_of(live), layout=layout, dtype=torch.float32, metadata={})
    assert verify_file(file, parts_of(live)) == 0.0  # the file is right either way
    fresh = load(folder)
    try:
        fresh.load_lora_weights(file)
        loaded = torch.equal(
            run_text_encoder(fresh.text_encoder), run_text_encoder(live.text_encoder)
        )
    except ValueError:
        loaded = False
    assert loaded == (loading_limits(parts_of(live), layout=layout) == [])


def test_diffusers_layout_is_what_the_library_itself_writes(tmp_path: Path, folder: Path) -> None:
    from loralab.adapters.container import read
    from loralab.adapters.state import adapter_state

    live = load(folder)
    for part, targets in (("unet", UNET_TARGETS), ("text_encoder", SD_SCRIPTS_TEXT_ENCODER)):
        inject(parts_of(live)[part], lora(*targets), part=part)
        randomize(parts_of(live)[part])
    write_adapter(
        tmp_path / "ours.safetensors",
        parts_of(live),
        layout="diffusers",
        dtype=torch.float32,
        metadata={},
    )
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=adapter_state(live.unet),
        text_encoder_lora_layers=adapter_state(live.text_encoder),
        weight_name="theirs.safetensors",
    )
    ours, _ = read(tmp_path / "ours.safetensors")
    theirs, _ = read(tmp_path / "theirs.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)

"""Where models lie: shards, the hub's cache, files that say what they predict."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from loralab.models.facts import model_facts
from loralab.models.family import ModelFamily
from loralab.models.registry import load_family
from loralab.models.source import ModelPlace
from tests.models.conformance.ldm import single_file
from tests.tiny import make_tiny_sdxl


def assert_same_weights(found: ModelFamily, wanted: ModelFamily) -> None:
    for name, part in wanted.parts.items():
        states = part.state_dict(), found.parts[name].state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_the_same_model(folder: Path, own_folder: Path, variant: str | None) -> None:
    """Split by the two libraries themselves, as they do with large models."""
    classes = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    for name, cls in classes.items():
        part = own_folder / name
        model = cls.from_pretrained(part)
        for weights in part.glob("*.safetensors"):
            weights.unlink()
        model.save_pretrained(part, max_shard_size="100KB", variant=variant)
        assert len(list(part.glob("*.safetensors"))) > 1
        assert list(part.glob("*.index*.json"))
    assert_same_weights(load_family("sd1", own_folder), load_family("sd1", folder))


def test_a_hub_id_is_read_from_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache's layout: huggingface.co/docs/huggingface_hub/guides/manage-cache."""
    place = tmp_path / "models--some-one--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0123abc")
    (place / "snapshots").mkdir()
    (place / "snapshots" / "0123abc").symlink_to(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert_same_weights(load_family("sd1", "some-one/tiny"), load_family("sd1", folder))


@pytest.mark.parametrize(
    ("marks", "prediction", "zero_snr"),
    [
        ([], "epsilon", False),
        (["v_pred"], "v_prediction", False),
        (["v_pred", "ztsnr"], "v_prediction", True),
    ],
)
def test_a_file_says_what_it_predicts(
    tmp_path: Path, marks: list[str], prediction: str, zero_snr: bool
) -> None:
    """Empty tensors by these names, as trainers of SDXL models with velocity leave them."""
    folder = make_tiny_sdxl(tmp_path / "folder")
    tensors = single_file(folder, "sdxl") | {name: torch.tensor([]) for name in marks}
    save_file(tensors, tmp_path / "model.safetensors")
    place = ModelPlace(tmp_path / "model.safetensors", config_path=folder)
    facts = model_facts(place, family="sdxl")
    assert facts.prediction_type == prediction
    assert bool(facts.schedule_config.get("rescale_betas_zero_snr")) == zero_snr


def test_a_pruned_sdxl_loads(tmp_path: Path) -> None:
    """Without the middle block and with fewer transformers, as distilled SDXL models are."""
    folder = make_tiny_sdxl(tmp_path)
    config = dict(UNet2DConditionModel.load_config(folder / "unet"))
    pruned = UNet2DConditionModel.from_config(
        config | {"mid_block_type": None, "transformer_layers_per_block": [1, 1]}
    )
    pruned.save_pretrained(folder / "unet")
    found = load_family("sdxl", folder).parts["unet"].state_dict()
    wanted = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loralab.errors import ModelError
from loralab.models.facts import model_facts
from tests.tiny import make_tiny_sd1

UNET = "unet/diffusion_pytorch_model.safetensors"


def messages(folder: Path, family: str = "sd1") -> list[str]:
    with pytest.raises(ModelError) as caught:
        model_facts(folder, family=family)
    assert {problem.key for problem in caught.value.problems} == {"model.path"}
    return [problem.message for problem in caught.value.problems]


def edit(file: Path, **fields: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) | fields
    kept = {name: value for name, value in content.items() if value is not ...}
    file.write_text(json.dumps(kept), encoding="utf-8")


def test_facts_of_the_tiny_model(folder: Path) -> None:
    facts = model_facts(folder, family="sd1")
    assert (facts.vae_factor, facts.bucket_step, facts.latent_channels) == (8, 16, 4)
    assert (facts.cross_attention_dim, facts.num_text_layers) == (32, 2)
    assert (facts.native_resolution, facts.latent_scale) == (64, 0.18215)
    assert facts.prediction_type == facts.schedule_config["prediction_type"] == "epsilon"


def test_bucket_step_follows_the_vae_and_the_unet(tmp_path: Path) -> None:
    facts = model_facts(make_tiny_sd1(tmp_path, vae_factor=4), family="sd1")
    assert (facts.vae_factor, facts.bucket_step) == (4, 8)


def test_prediction_type_is_read_from_the_scheduler(tmp_path: Path) -> None:
    folder = make_tiny_sd1(tmp_path, prediction_type="v_prediction")
    assert model_facts(folder, family="sd1").prediction_type == "v_prediction"


def test_configs_of_2022_without_later_fields_are_read(own_folder: Path) -> None:
    edit(own_folder / "scheduler/scheduler_config.json", prediction_type=...)
    edit(own_folder / "vae/config.json", scaling_factor=..., shift_factor=...)
    edit(own_folder / "unet/config.json", use_linear_projection=..., addition_embed_type=...)
    facts = model_facts(own_folder, family="sd1")
    assert facts.schedule_config["prediction_type"] == "epsilon"
    assert facts.latent_scale == 0.18215


def test_facts_are_read_without_importing_torch(folder: Path) -> None:
    code = (
        "import sys; from loralab.models.facts import model_facts;"
        "from loralab.models.registry import family_spec;"
        f"model_facts({str(folder)!r}, family=family_spec('sd1').name);"
        "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_folder_is_one_problem(tmp_path: Path) -> None:
    (message,) = messages(tmp_path / "nowhere")
    assert "does not exist" in message
    assert "nothing is downloaded" in message


def test_an_empty_file_is_one_problem(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    (message,) = messages(tmp_path / "model.safetensors")
    assert "not a safetensors file or is cut off (0 bytes)" in message


def test_an_empty_folder_names_every_missing_file(tmp_path: Path) -> None:
    text = "\n".join(messages(tmp_path))
    for name in (
        "unet/config.json", "vae/config.json", "text_encoder/config.json",
        "scheduler/scheduler_config.json", UNET, "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt",
    ):  # fmt: skip
        assert f"{tmp_path / name}" in text


def test_a_missing_tokenizer_is_named(own_folder: Path) -> None:
    shutil.rmtree(own_folder / "tokenizer")
    (message,) = messages(own_folder)
    assert "tokenizer/vocab.json" in message
    assert "are missing" in message


def test_a_tokenizer_of_another_model_is_refused(own_folder: Path) -> None:
    edit(own_folder / "tokenizer/vocab.json", extra=534)
    (message,) = messages(own_folder)
    assert "knows 535 tokens" in message
    assert "vocab_size is 534" in message


def test_a_pickle_alone_is_refused(own_folder: Path) -> None:
    (own_folder / UNET).rename(own_folder / "unet/diffusion_pytorch_model.bin")
    (message,) = messages(own_folder)
    assert "diffusion_pytorch_model.bin is a pickle" in message


def test_a_variant_stands_in_for_the_plain_file(own_folder: Path) -> None:
    (own_folder / UNET).rename(own_folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert model_facts(own_folder, family="sd1").family == "sd1"


def test_a_missing_shard_is_named(own_folder: Path) -> None:
    weights = own_folder / UNET
    weights.rename(own_folder / "unet/diffusion_pytorch_model-00001-of-00002.safetensors")
    index = {"a": "diffusion_pytorch_model-00001-of-00002.safetensors", "b": "other.safetensors"}
    place = own_folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    place.write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    (message,) = messages(own_folder)
    assert "unet/other.safetensors is missing, but the index of shards names it" in message


def test_an_index_without_files_is_named(own_folder: Path) -> None:
    (own_folder / UNET).unlink()
    (own_folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    (message,) = messages(own_folder)
    assert "index.json names no files of weights" in message


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_no_safetensors_is_refused(own_folder: Path, content: bytes) -> None:
    (own_folder / UNET).write_bytes(content)
    (message,) = messages(own_folder)
    assert "not a safetensors file or is cut off" in message


def test_a_cut_off_download_is_refused(own_folder: Path) -> None:
    whole = (own_folder / UNET).read_bytes()
    (own_folder / UNET).write_bytes(whole[:-100])
    (message,) = messages(own_folder)
    assert f"has {len(whole) - 100} bytes where its header promises {len(whole)}" in message


def test_a_damaged_config_is_named(own_folder: Path) -> None:
    (own_folder / "vae/config.json").write_text("{", encoding="utf-8")
    (message,) = messages(own_folder)
    assert "vae/config.json cannot be read as JSON" in message


def test_an_sdxl_folder_is_refused_as_sd1(own_folder: Path) -> None:
    (own_folder / "text_encoder_2").mkdir()
    (message,) = messages(own_folder)
    assert "laid out like sdxl, but model.family is sd1" in message


def test_an_sd2_folder_is_refused_as_sd1(own_folder: Path) -> None:
    edit(own_folder / "unet/config.json", use_linear_projection=True)
    (message,) = messages(own_folder)
    assert "laid out like sd2" in message


def test_an_inpainting_unet_is_refused(own_folder: Path) -> None:
    edit(own_folder / "unet/config.json", in_channels=9)
    (message,) = messages(own_folder)
    assert "in_channels 9" in message


def test_all_problems_are_reported_at_once(own_folder: Path) -> None:
    edit(own_folder / "unet/config.json", cross_attention_dim=64)
    edit(own_folder / "vae/config.json", shift_factor=0.1)
    edit(own_folder / "scheduler/scheduler_config.json", prediction_type="x0")
    cross, shift, kind = messages(own_folder)
    assert "cross_attention_dim 64, but the text encoder's hidden_size is 32" in cross
    assert "shift_factor 0.1" in shift
    assert 'prediction_type "x0"; allowed are epsilon, v_prediction' in kind


def test_a_unet_config_without_needed_fields_names_them(own_folder: Path) -> None:
    edit(own_folder / "unet/config.json", cross_attention_dim=[32, 32], sample_size=...)
    first, second = messages(own_folder)
    assert "cross_attention_dim [32, 32]; a whole number is needed" in first
    assert "sample_size null" in second

"""Names, tensors, metadata and hashes of adapter files; what a damaged file is answered with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from loralab.adapters.container import read
from loralab.adapters.export import parse_adapter, verify_file, write_adapter
from loralab.adapters.layers import adapter_layers, live_weights
from loralab.errors import AdapterError
from tests.adapters.adapted import randomize

Parts = dict[str, nn.Module]
UNET_Q = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def write(
    path: Path, parts: Parts, layout: str = "kohya", dtype: torch.dtype = torch.float32
) -> None:
    write_adapter(path, parts, layout=layout, dtype=dtype, metadata={"ss_seed": "1", "note": "ü"})


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change a file's tensors and keep its metadata."""
    tensors, metadata = read(path)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    change(tensors)
    safetensors.torch.save_file(tensors, path, metadata)


def test_kohya_file_holds_the_literal_keys_and_shapes(tmp_path: Path, trained: Parts) -> None:
    write(tmp_path / "a.safetensors", trained)
    tensors, metadata = read(tmp_path / "a.safetensors")
    encoder = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    assert tensors[f"{encoder}.lora_down.weight"].shape == (3, 32)
    assert tensors[f"{encoder}.lora_up.weight"].shape == (32, 3)
    assert tensors[f"{encoder}.alpha"].shape == ()
    assert float(tensors[f"{encoder}.alpha"]) == pytest.approx(1.3)
    assert float(tensors[f"lora_unet_{UNET_Q}.alpha"]) == 7.0
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    assert tensors[f"{conv}.lora_down.weight"].shape == (4, 32, 3, 3)
    assert tensors[f"{conv}.lora_up.weight"].shape == (32, 4, 1, 1)
    num_modules = sum(len(adapter_layers(part)) for part in trained.values())
    assert len(tensors) == 3 * num_modules
    assert metadata["ss_seed"] == "1"
    assert metadata["note"] == "ü"


def test_diffusers_file_holds_the_keys_and_metadata_of_the_library(
    tmp_path: Path, trained: Parts
) -> None:
    write(tmp_path / "a.safetensors", trained, "diffusers")
    tensors, metadata = read(tmp_path / "a.safetensors")
    attention = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert tensors[f"{attention}.lora_A.weight"].shape == (4, 32)
    assert "text_encoder.encoder.layers.0.self_attn.q_proj.lora_B.weight" in tensors
    assert not [key for key in tensors if "alpha" in key or "base_layer" in key]
    config = json.loads(metadata["lora_adapter_metadata"])
    assert config["unet.r"] == 4
    assert config["unet.lora_alpha"] == 7.0
    assert config["text_encoder.r"] == 3
    assert config["text_encoder.lora_alpha"] == pytest.approx(1.3)
    assert config["text_encoder.rank_pattern"] == {}
    assert len(config["text_encoder.target_modules"]) == 12
    assert metadata["format"] == "pt"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_kohya_tensor_has_the_dtype_asked_for(
    tmp_path: Path, trained: Parts, dtype: torch.dtype
) -> None:
    write(tmp_path / "a.safetensors", trained, dtype=dtype)
    tensors, _ = read(tmp_path / "a.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}


def test_hashes_are_those_of_the_bytes_after_the_header(tmp_path: Path, trained: Parts) -> None:
    path = tmp_path / "a.safetensors"
    write(path, trained)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    tensors, metadata = read(path)
    assert metadata["sshs_model_hash"] == hashlib.sha256(data[8 + size :]).hexdigest()
    # The short hash is of 64 KiB at offset 1 MiB of a file with the ss_ metadata alone.
    assert metadata["sshs_legacy_hash"] == "e3b0c442"  # this file is smaller: hash of nothing
    assert size % 8 == 0
    assert tensors


def test_short_hash_of_a_large_file_is_that_of_a_file_with_ss_metadata_alone(
    tmp_path: Path,
) -> None:
    from loralab.adapters.inject import inject
    from tests.adapters.adapted import lora

    module = nn.ModuleDict({"wide": nn.Linear(40000, 8)})
    inject(module, lora("wide", rank=8), part="unet")
    randomize(module)
    path = tmp_path / "a.safetensors"
    write(path, {"unet": module})
    tensors, metadata = read(path)
    alone = safetensors.torch.save(tensors, {"ss_seed": "1"})
    expected = hashlib.sha256(alone[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    assert metadata["sshs_legacy_hash"] == expected != "e3b0c442"


def test_equal_adapters_give_equal_bytes(tmp_path: Path, trained: Parts) -> None:
    metadata = {f"ss_{number}": str(number) for number in range(20)}
    for layout in ("kohya", "diffusers"):
        written = []
        for name in ("a.safetensors", "b.safetensors"):
            write_adapter(
                tmp_path / name, trained, layout=layout, dtype=torch.float32, metadata=metadata
            )
            written.append((tmp_path / name).read_bytes())
        assert written[0] == written[1]


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize(
    ("dtype", "smallest", "largest"),
    [(torch.float32, 0.0, 1e-7), (torch.float16, 1e-5, 1e-2), (torch.bfloat16, 1e-4, 2e-2)],
)
def test_verification_returns_what_the_dtype_costs(
    tmp_path: Path,
    trained: Parts,
    layout: str,
    dtype: torch.dtype,
    smallest: float,
    largest: float,
) -> None:
    write(tmp_path / "a.safetensors", trained, layout, dtype)
    assert smallest <= verify_file(tmp_path / "a.safetensors", trained) <= largest


def test_file_of_a_fresh_adapter_is_verified(tmp_path: Path, trained: Parts) -> None:
    for module in trained.values():
        for weights in live_weights(module).values():
            nn.init.zeros_(weights.up)
    write(tmp_path / "a.safetensors", trained)
    assert verify_file(tmp_path / "a.safetensors", trained) == 0.0


def test_part_without_an_adapter_is_passed_over(
    tmp_path: Path, unet: nn.Module, trained: Parts
) -> None:
    from tests.tiny import tiny_text_encoder

    parts = {"unet": trained["unet"], "text_encoder": tiny_text_encoder(600)}
    for layout in ("kohya", "diffusers"):
        write(tmp_path / "a.safetensors", parts, layout)
        assert verify_file(tmp_path / "a.safetensors", parts) == 0.0
        with pytest.raises(AdapterError, match="q_proj is missing from the file"):
            verify_file(tmp_path / "a.safetensors", trained)


@pytest.mark.parametrize("alpha", [4.0, 7.1])
def test_wrong_alpha_is_found(tmp_path: Path, trained: Parts, alpha: float) -> None:
    path = tmp_path / "a.safetensors"
    write(path, trained)
    name = f"lora_unet_{UNET_Q}"
    rewrite(path, lambda tensors: tensors.update({f"{name}.alpha": torch.tensor(alpha)}))
    with pytest.raises(
        AdapterError, match=r"is not the trained adapter: unet\.down_blocks"
    ) as caught:
        verify_file(path, trained)
    assert len(caught.value.problems) == 1


def test_alpha_lost_from_the_metadata_is_found(tmp_path: Path, trained: Parts) -> None:
    path = tmp_path / "a.safetensors"
    write(path, trained, "diffusers")
    tensors, _ = read(path)
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    with pytest.raises(AdapterError) as caught:
        verify_file(path, trained)
    assert len(caught.value.problems) == sum(len(adapter_layers(p)) for p in trained.values())


def test_missing_modules_are_all_named(tmp_path: Path, trained: Parts) -> None:
    path = tmp_path / "a.safetensors"
    write(path, trained)

    def drop(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if "layers_0_mlp" in key]:
            del tensors[key]

    rewrite(path, drop)
    with pytest.raises(AdapterError) as caught:
        verify_file(path, trained)
    assert len(caught.value.problems) == 2
    assert "text_encoder.encoder.layers.0.mlp.fc1 is missing from the file" in str(caught.value)


def test_module_of_another_model_and_half_a_module_are_named(
    tmp_path: Path, trained: Parts
) -> None:
    path = tmp_path / "a.safetensors"
    write(path, trained)

    def damage(tensors: dict[str, Tensor]) -> None:
        del tensors[f"lora_unet_{UNET_Q}.lora_up.weight"]
        tensors["lora_unet_down_blocks_7_conv1.lora_down.weight"] = torch.zeros(4, 4)
        tensors["lora_unet_down_blocks_7_conv1.lora_up.weight"] = torch.zeros(4, 4)
        key = "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"
        tensors[key] = torch.zeros(3, 33)

    rewrite(path, damage)
    with pytest.raises(AdapterError) as caught:
        parse_adapter(path, trained)
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert f"lacks the up factor of lora_unet_{UNET_Q}" in text
    assert "adapts unet.down_blocks.7.conv1, which the model does not have" in text
    assert "of shape (3, 33)" in text


def test_kohya_file_without_alpha_means_alpha_of_the_rank(tmp_path: Path, trained: Parts) -> None:
    path = tmp_path / "a.safetensors"
    write(path, trained)
    rewrite(path, lambda tensors: [tensors.pop(k) for k in list(tensors) if k.endswith("alpha")])
    assert {w.alpha for w in parse_adapter(path, trained)["unet"].values()} == {4.0}


def test_flat_factors_of_a_one_by_one_convolution_are_read(tmp_path: Path, trained: Parts) -> None:
    path = tmp_path / "a.safetensors"
    write(path, trained)

    def flatten(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if "proj_in.lora" in key]:
            tensors[key] = tensors[key].flatten(1).clone()

    rewrite(path, flatten)
    assert verify_file(path, trained) == 0.0


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "missing", "folder"])
def test_damaged_file_is_an_adapter_error(tmp_path: Path, trained: Parts, damage: str) -> None:
    path = tmp_path / "a.safetensors"
    write(path, trained)
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"truncated": data[:-100], "garbage": b"\xff" * 500, "empty": b""}[damage])
    with pytest.raises(
        AdapterError, match=r"a\.safetensors (cannot be read as a|does not exist|is a folder)"
    ):
        verify_file(path, trained)


def test_file_with_one_changed_bit_pattern_is_found(tmp_path: Path, trained: Parts) -> None:
    path = tmp_path / "a.safetensors"
    write(path, trained)
    data = bytearray(path.read_bytes())
    data[-2] ^= 0x40
    path.write_bytes(bytes(data))
    with pytest.raises(AdapterError, match="is not the trained adapter"):
        verify_file(path, trained)


def test_unreadable_adapter_metadata_is_an_adapter_error(tmp_path: Path, trained: Parts) -> None:
    path = tmp_path / "a.safetensors"
    write(path, trained, "diffusers")
    tensors, _ = read(path)
    for text in ("{", "[]", '{"unet.lora_alpha": "x"}', '{"unet.alpha_pattern": {"(": 1}}'):
        safetensors.torch.save_file(tensors, path, {"lora_adapter_metadata": text})
        with pytest.raises(AdapterError, match="unreadable lora_adapter_metadata"):
            verify_file(path, trained)


def test_file_without_an_adapter_is_refused(tmp_path: Path, trained: Parts) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({}, path)
    with pytest.raises(AdapterError, match="holds no adapter"):
        parse_adapter(path, trained)


def test_values_beyond_float16_are_refused_and_the_old_file_stays(
    tmp_path: Path, trained: Parts
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    weights = live_weights(trained["text_encoder"])["encoder.layers.0.mlp.fc1"]
    weights.up.data[0, 0] = 1e6
    with pytest.raises(AdapterError, match=r"fc1\.lora_up\.weight is not finite in float16"):
        write(path, trained, dtype=torch.float16)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_values_too_small_for_float16_are_found(tmp_path: Path, trained: Parts) -> None:
    randomize(trained["text_encoder"], std=1e-7)
    write(tmp_path / "a.safetensors", trained, dtype=torch.float16)
    with pytest.raises(AdapterError, match="in float32 if the values are very small"):
        verify_file(tmp_path / "a.safetensors", trained)


def test_folder_that_cannot_be_made_is_an_adapter_error(tmp_path: Path, trained: Parts) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(AdapterError, match="cannot be written"):
        write(tmp_path / "file" / "a.safetensors", trained)


def test_no_temporary_file_stays_and_folders_are_made(tmp_path: Path, trained: Parts) -> None:
    write(tmp_path / "new" / "folder" / "a.safetensors", trained)
    assert os.listdir(tmp_path / "new" / "folder") == ["a.safetensors"]


def test_unknown_layout_and_dtype_are_refused(tmp_path: Path, trained: Parts) -> None:
    with pytest.raises(AdapterError, match="'peft'; it must be one of kohya, diffusers"):
        write(tmp_path / "a.safetensors", trained, "peft")
    with pytest.raises(AdapterError, match=r"export\.precision is float64"):
        write(tmp_path / "a.safetensors", trained, dtype=torch.float64)

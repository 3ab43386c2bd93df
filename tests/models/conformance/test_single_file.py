"""One file holds the same model as the folder; broken files are refused in one sentence."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from loralab.errors import ModelError
from loralab.models.components import skeletons, vae_digest
from loralab.models.facts import model_facts
from loralab.models.registry import load_family
from loralab.models.source import ModelPlace
from loralab.models.specs import SPECS, family_spec
from tests.models.conformance.cases import CASES, Case
from tests.models.conformance.ldm import single_file, unet_names, vae_tensors


@pytest.fixture(scope="module")
def tensors(case: Case, folder: Path) -> dict[str, torch.Tensor]:
    return single_file(folder, case.name)


@pytest.fixture
def file(tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    """A whole model in one file that a test may damage."""
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    return path


def messages(place: ModelPlace | Path, family: str) -> list[str]:
    with pytest.raises(ModelError) as caught:
        load_family(family, place)
    return [problem.message for problem in caught.value.problems]


@pytest.mark.parametrize("ending", ["safetensors", "ckpt", "old.ckpt"])
def test_folder_and_single_file_agree_to_the_bit(
    case: Case, folder: Path, tensors: dict[str, torch.Tensor], tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"model.{ending}"
    if ending == "safetensors":
        save_file(tensors, path)
    else:
        whole: Any = {"state_dict": tensors, "global_step": 3}
        torch.save(whole, path, _use_new_zipfile_serialization=ending == "ckpt")
    place = ModelPlace(path, config_path=folder)
    one, other = load_family(case.name, folder), load_family(case.name, place)
    assert one.facts == other.facts
    networks = [
        (first, second)
        for first, second in (
            *((one.parts[name], other.parts[name]) for name in one.parts),
            (one.load_codec().vae, other.load_codec().vae),
        )
    ]
    for first, second in networks:
        wanted, found = first.state_dict(), second.state_dict()
        assert wanted.keys() == found.keys()
        assert all(torch.equal(wanted[name], found[name]) for name in wanted)
        assert not any(p.requires_grad or p.is_meta for p in second.parameters())
    sizes = torch.tensor([[64, 64, 0, 0, 64, 64]])
    predictions = []
    for family in (one, other):
        with torch.no_grad():
            conditioning = family.conditioner.encode(["red circle"], sizes=sizes)
            noisy = torch.ones(1, 4, 8, 8)
            predictions.append(family.denoiser(noisy, torch.tensor([7]), conditioning))
    assert torch.equal(*predictions)


def test_skeletons_of_both_have_the_same_names_and_shapes(
    case: Case, folder: Path, file: Path
) -> None:
    spec = family_spec(case.name)
    one, other = skeletons(folder, spec), skeletons(ModelPlace(file, config_path=folder), spec)
    for name in one:
        shapes = [{n: p.shape for n, p in part[name].named_parameters()} for part in (one, other)]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_go_straight_to_their_dtype(
    case: Case, folder: Path, file: Path, dtype: torch.dtype
) -> None:
    family = load_family(case.name, ModelPlace(file, config_path=folder), weight_dtype=dtype)
    for part in family.parts.values():
        assert {parameter.dtype for parameter in part.parameters()} == {dtype}
    assert {p.dtype for p in family.load_codec().parameters()} == {torch.float32}


def test_a_file_of_another_family_is_named(case: Case, file: Path) -> None:
    for family in SPECS.keys() - {case.name}:
        (message,) = messages(file, family)
        assert f"laid out like {case.name}, but model.family is {family}" in message
        assert f"set model.family={case.name}" in message


def test_a_truncated_file_is_one_sentence(case: Case, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    (message,) = messages(file, case.name)
    assert "bytes where its header promises" in message


def test_a_truncated_pickle_is_one_sentence(
    case: Case, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:-2000])
    (message,) = messages(path, case.name)
    assert "cannot be read as a torch checkpoint" in message


def test_missing_weights_are_one_sentence_with_the_first(
    case: Case, folder: Path, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    for prefix, part in (("model.diffusion_model.time_embed", "unet"), ("first_stage", "vae")):
        path = tmp_path / f"{part}.safetensors"
        gone = next(name for name in tensors if name.startswith(prefix) and "conv_in" not in name)
        save_file({name: t for name, t in tensors.items() if name != gone}, path)
        with pytest.raises(ModelError) as caught:
            load_family(case.name, ModelPlace(path, config_path=folder)).load_codec()
        (problem,) = caught.value.problems
        assert "lacks 1 of the weights" in problem.message


def test_a_missing_vae_asks_for_another(
    case: Case, folder: Path, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file({n: t for n, t in tensors.items() if not n.startswith("first_stage")}, bare)
    (message,) = messages(ModelPlace(bare, config_path=folder), case.name)
    assert "has no vae; name one with model.vae_path" in message
    place = ModelPlace(bare, config_path=folder, vae_path=folder)
    codec, own = (load_family(case.name, p).load_codec() for p in (place, folder))
    assert torch.equal(codec.vae.quant_conv.weight, own.vae.quant_conv.weight)


class Payload:
    """Runs when it is unpickled; a test plants it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.target),))


def test_pickled_code_does_not_run(
    case: Case, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    planted, path = tmp_path / "ran", tmp_path / "model.ckpt"
    content: Any = {"state_dict": tensors, "callbacks": Payload(planted)}
    torch.save(content, path)
    (message,) = messages(path, case.name)
    assert "a pickle with more than weights in it" in message
    assert "(posix.mkdir), which is never run" in message
    assert not planted.exists()
    pickle.loads(pickle.dumps(Payload(planted)))
    assert planted.exists(), "the planted code works: only nobody ran it"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "an adapter"),
        ("down_blocks.0.resnets.0.conv1.weight", "a single part in diffusers' layout"),
        ("model.diffusion_model.joint_blocks.0.x", "a Stable Diffusion 3 model"),
        ("something.else", "no Stable Diffusion checkpoint"),
    ],
)
def test_other_files_are_told_what_they_are(tmp_path: Path, name: str, what: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(1)}, path)
    (message,) = messages(path, "sd1")
    assert what in message


def test_a_vae_alone_is_read_in_both_layouts(case: Case, folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    own = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    changed = {name: tensor + 1 for name, tensor in own.items()}
    save_file(changed, tmp_path / "diffusers.safetensors")
    save_file(
        {n: t.contiguous() for n, t in vae_tensors(changed).items()},
        tmp_path / "ldm.safetensors",
    )
    digests = {vae_digest(folder, family_spec(case.name))}
    for file in ("diffusers.safetensors", "ldm.safetensors"):
        place = ModelPlace(folder, vae_path=tmp_path / file)
        weight = load_family(case.name, place).load_codec().vae.quant_conv.weight
        assert torch.equal(weight, changed["quant_conv.weight"])
        digests.add(vae_digest(place, family_spec(case.name)))
    assert len(digests) == 3, "another VAE has other latents: never the same cache"


@pytest.mark.parametrize("case_", CASES, ids=lambda case: case.name)
def test_configs_follow_from_the_shapes_at_full_size(case_: Case) -> None:
    """A full-size file's shapes give back the config that ships with the package."""
    from loralab.models.checkpoint import SHIPPED
    from loralab.models.checkpoint_shapes import unet_config

    base = json.loads((SHIPPED / case_.name / "unet/config.json").read_text())
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(base)
    from tests.models.conformance.ldm import _renamed

    names = unet_names(base["layers_per_block"], base["down_block_types"])
    shapes = {_renamed(key, names): tuple(t.shape) for key, t in unet.state_dict().items()}
    assert unet_config(shapes, {**base, "block_out_channels": [], "cross_attention_dim": 1}) == base


def test_facts_need_no_weights(case: Case, folder: Path, file: Path) -> None:
    assert model_facts(ModelPlace(file, config_path=folder), family=case.name) == model_facts(
        folder, family=case.name
    )

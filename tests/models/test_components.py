import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from loralab.errors import ModelError
from loralab.models.components import load_text_encoder, load_tokenizer, skeletons, vae_digest
from loralab.models.family import ModelFamily
from loralab.models.opening import open_model
from loralab.models.registry import family_spec, load_family
from tests.tiny import make_tiny_sd1

SPEC = family_spec("sd1")
UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
TEXT_LAYER = "encoder.layers.0.self_attn"


def hits(module: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Names of linear and convolution layers that end in one of the targets."""
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and any(name.endswith("." + target) for target in targets)
    ]


@pytest.fixture(scope="module")
def real_parts() -> dict[str, nn.Module]:
    """Parts of real SD1 size, without memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
        )
    return {"unet": unet, "text_encoder": text}


@pytest.mark.parametrize(
    ("part", "preset", "count"),
    [
        ("unet", "attention", 128),
        ("unet", "attention_mlp", 160),
        ("unet", "sd_scripts", 192),  # the counts that sd-scripts itself reports
        ("unet", "full", 278),
        ("text_encoder", "attention", 48),
        ("text_encoder", "attention_mlp", 72),
        ("text_encoder", "sd_scripts", 72),
        ("text_encoder", "full", 72),
    ],
)
def test_presets_meet_the_known_number_of_modules_in_a_real_sd1(
    real_parts: dict[str, nn.Module], part: str, preset: str, count: int
) -> None:
    assert len(hits(real_parts[part], family_spec("sd1").targets[part][preset])) == count


def test_presets_never_touch_the_outer_convolutions_or_embeddings(
    real_parts: dict[str, nn.Module],
) -> None:
    names = hits(real_parts["unet"], family_spec("sd1").targets["unet"]["full"])
    outer = ("conv_in", "conv_out", "time_embedding")
    assert not [name for name in names if name.startswith(outer)]


def test_every_target_of_every_preset_meets_something_in_the_tiny_model(folder: Path) -> None:
    parts = skeletons(folder, SPEC)
    for part, presets in family_spec("sd1").targets.items():
        for target in {target for targets in presets.values() for target in targets}:
            assert hits(parts[part], (target,)), f"{part}: {target}"


def test_skeletons_have_the_names_and_shapes_of_the_loaded_parts(
    folder: Path, family: ModelFamily
) -> None:
    for part, skeleton in skeletons(folder, SPEC).items():
        assert {p.device.type for p in skeleton.parameters()} == {"meta"}
        shapes = {name: p.shape for name, p in skeleton.named_parameters()}
        assert shapes == {name: p.shape for name, p in family.parts[part].named_parameters()}


def test_loaded_weights_are_those_of_the_files(folder: Path, family: ModelFamily) -> None:
    for part, file in (("unet", UNET), ("text_encoder", TEXT)):
        state = family.parts[part].state_dict()
        for name, tensor in load_file(folder / file).items():
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


def test_a_loaded_family_is_frozen_and_in_eval_mode(family: ModelFamily) -> None:
    for part in (*family.parts.values(), family.load_codec().vae):
        assert not any(parameter.requires_grad for parameter in part.parameters())
        assert not part.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weight_dtype_holds_for_unet_and_text_encoder_but_not_for_the_codec(
    folder: Path, dtype: torch.dtype
) -> None:
    family = load_family("sd1", folder, weight_dtype=dtype)
    for part in family.parts.values():
        assert {parameter.dtype for parameter in part.parameters()} == {dtype}
    assert {p.dtype for p in family.load_codec().parameters()} == {torch.float32}


def test_bf16_weights_predict_without_autocast(folder: Path, family: ModelFamily) -> None:
    half = load_family("sd1", folder, weight_dtype=torch.bfloat16)
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    with torch.no_grad():
        got, wanted = (
            model.denoiser(noisy, timesteps, model.conditioner.encode(["red", "blue"])).float()
            for model in (half, family)
        )
    assert (got - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_an_fp16_variant_is_loaded_and_a_half_precision_vae_is_upcast(own_folder: Path) -> None:
    for part in ("unet", "vae"):
        plain = own_folder / part / "diffusion_pytorch_model.safetensors"
        state = {name: tensor.half() for name, tensor in load_file(plain).items()}
        save_file(state, plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
        plain.unlink()
    family = load_family("sd1", own_folder)
    assert {p.dtype for p in family.parts["unet"].parameters()} == {torch.float32}
    assert {p.dtype for p in family.load_codec().parameters()} == {torch.float32}


def test_text_encoder_files_from_before_transformers_5_load_equal(own_folder: Path) -> None:
    new = load_file(own_folder / TEXT)
    old = {f"text_model.{name}": tensor for name, tensor in new.items()}
    old["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(old, own_folder / TEXT, metadata={"format": "pt"})
    sources = open_model(own_folder, SPEC)
    state = load_text_encoder(sources, SPEC.text[0], dtype=torch.float32).state_dict()
    for name, tensor in new.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("file", [UNET, TEXT])
def test_a_file_that_lacks_weights_is_refused(own_folder: Path, file: str) -> None:
    state = load_file(own_folder / file)
    gone = sorted(state)[3]
    del state[gone]
    save_file(state, own_folder / file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"lacks 1 of the weights.*{gone}"):
        load_family("sd1", own_folder)


@pytest.mark.parametrize("file", [UNET, TEXT])
def test_weights_of_another_width_are_refused(own_folder: Path, file: str) -> None:
    state = load_file(own_folder / file)
    name = next(name for name in sorted(state) if state[name].dim() == 2)
    state[name] = torch.zeros(3, 5)
    save_file(state, own_folder / file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{name}.*must come from the same model"):
        load_family("sd1", own_folder)


def test_the_tokenizer_is_the_folders_own(folder: Path, family: ModelFamily) -> None:
    vocabulary = json.loads((folder / "tokenizer/vocab.json").read_text(encoding="utf-8"))
    ids = family.conditioner.encoders[0].tokenize(["red"])[0, 0]
    start, red, end = (vocabulary[w] for w in ("<|startoftext|>", "red</w>", "<|endoftext|>"))
    assert ids.tolist() == [start, red] + [end] * 75


def test_a_garbage_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="tokens, but the text encoder's vocab_size is 534"):
        load_tokenizer(open_model(tmp_path, SPEC), SPEC.text[0], vocab_size=534)


def test_vae_digest_tells_vaes_apart(folder: Path, tmp_path: Path) -> None:
    same, other = (make_tiny_sd1(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    first, again, changed = (vae_digest(path, SPEC) for path in (folder, same, other))
    assert first == again != changed
    with pytest.raises(ModelError, match=r"vae/config\.json is missing"):
        vae_digest(tmp_path, SPEC)


def test_an_unknown_family_suggests_the_nearest() -> None:
    with pytest.raises(ModelError, match="Did you mean sd1"):
        load_family("sd15", "unused")


def test_all_wrong_options_are_reported_at_once(folder: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_family(
            "sd1", folder, weight_dtype=torch.int8, clip_skip=3, text_rows=0, attention="flash"
        )
    keys = [problem.key for problem in caught.value.problems]
    assert keys == ["model.weight_dtype", "model.clip_skip", "model.max_tokens", "model.attention"]


def test_eager_attention_agrees_with_sdpa(folder: Path, family: ModelFamily) -> None:
    eager = load_family("sd1", folder, attention="eager")
    noisy, timesteps = torch.randn(1, 4, 8, 8), torch.tensor([300])
    with torch.no_grad():
        got, wanted = (
            model.denoiser(noisy, timesteps, model.conditioner.encode(["red, circle"]))
            for model in (eager, family)
        )
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(
    folder: Path, clip_skip: int
) -> None:
    torch.manual_seed(0)
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([100, 700])
    results = []
    for checkpointing in (False, True):
        family = load_family(
            "sd1", folder, gradient_checkpointing=checkpointing, clip_skip=clip_skip
        )
        watched = {
            "unet": family.parts["unet"].get_parameter("mid_block.attentions.0.proj_in.weight"),
            "text": family.parts["text_encoder"].get_parameter("encoder.layers.0.mlp.fc1.weight"),
        }
        for parameter in watched.values():
            parameter.requires_grad_(True)
        for module in (family.denoiser, family.conditioner):
            module.train()
        runs: list[str] = []
        for part, name in (("unet", "up_blocks.0.resnets.0"), ("text_encoder", TEXT_LAYER)):
            family.parts[part].get_submodule(name).register_forward_pre_hook(
                lambda *_, part=part, runs=runs: runs.append(part)
            )
        loss = family.denoiser(noisy, timesteps, family.conditioner.encode(["a", "red"])).square()
        loss.mean().backward()
        results.append((loss.detach(), *(parameter.grad for parameter in watched.values())))
        recomputed = ["unet", "text_encoder"] if checkpointing else []
        assert runs == ["text_encoder", "unet", *recomputed]
    for plain, checkpointed in zip(*results, strict=True):
        assert plain is not None
        torch.testing.assert_close(plain, checkpointed)


def test_train_mode_gives_the_numbers_of_eval_mode(family: ModelFamily) -> None:
    noisy, timesteps = torch.randn(1, 4, 8, 8), torch.tensor([300])
    outputs = []
    for training in (True, False):
        for module in (family.denoiser, family.conditioner):
            module.train(training)
        with torch.no_grad():
            conditioning = family.conditioner.encode([], input_ids=torch.arange(77)[None])
            outputs.append(family.denoiser(noisy, timesteps, conditioning))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)


@pytest.mark.parametrize("trainable", [False, True])
def test_checkpointing_lets_validation_run_in_inference_mode(folder: Path, trainable: bool) -> None:
    family = load_family("sd1", folder, gradient_checkpointing=True, clip_skip=2)
    family.conditioner.encoders[0].model.requires_grad_(trainable)
    for module in (family.denoiser, family.conditioner):
        module.train()
    with torch.inference_mode():
        conditioning = family.conditioner.encode(["red"])
        prediction = family.denoiser(torch.randn(1, 4, 8, 8), torch.tensor([5]), conditioning)
    assert not prediction.requires_grad


def test_facts_agree_with_the_loaded_parts(family: ModelFamily) -> None:
    (encoder,) = family.conditioner.encoders
    assert family.facts.num_text_layers == len(encoder.model.encoder.layers)
    assert family.facts.text[0].vocab_size == len(encoder.tokenizer)
    assert family.latent_scale == family.facts.latent_scale == family.load_codec().latent_scale

"""The base's parts: files, VAE, length and weights of captions, sizes, attention."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file

from loralab.errors import ConfigError, DataError, UserError
from tests.effects.registry import effect
from tests.effects.runs import Tiny, changed
from tests.models.conformance.ldm import single_file
from tests.tiny import make_tiny_sd2, make_tiny_sdxl

VAE = "vae/diffusion_pytorch_model.safetensors"


def one_file(tiny: Tiny) -> Path:
    """Return the tiny base as one checkpoint file."""
    path = tiny.root / "base.safetensors"
    if not path.is_file():
        save_file(single_file(tiny.base, "sd1"), path)
    return path


@effect("model.path", "model.config_path")
def test_one_file_with_the_folders_configs_trains_the_folders_adapter(tiny: Tiny) -> None:
    found = tiny.run(f"model.path={one_file(tiny)}", f"model.config_path={tiny.base}").adapter
    assert changed(tiny.run().adapter, found) == []


@effect("model.config_path")
def test_without_configs_a_tiny_file_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"model\.config_path"):
        tiny.survey(f"model.path={one_file(tiny)}")


@effect("model.config_path")
def test_a_folder_takes_no_other_configs(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"is a folder, which has configs of its own"):
        tiny.survey(f"model.config_path={tiny.base}")


@effect("model.family")
def test_another_family_is_named_with_the_way_out(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"laid out like sd1.*set model\.family=sd1"):
        tiny.survey("model.family=sdxl", "model.clip_skip=null")


@effect("model.family")
def test_an_sd2_base_is_read_as_sd2_alone(tiny: Tiny, tmp_path: Path) -> None:
    folder = make_tiny_sd2(tmp_path / "sd2")
    with pytest.raises(ConfigError, match=r"laid out like sd2.*set model\.family=sd2"):
        tiny.survey(f"model.path={folder}")
    built = tiny.build("model.family=sd2", f"model.path={folder}")
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    unet = built.job.module.denoiser.unet
    assert unet.config["cross_attention_dim"] == config["hidden_size"]
    assert config["hidden_act"] == "gelu"  # OpenCLIP's encoder; that of SD 1 has quick_gelu


@effect("model.prediction_type")
def test_an_sd2_file_that_does_not_say_what_it_predicts_is_asked_about(
    tiny: Tiny, tmp_path: Path
) -> None:
    folder = make_tiny_sd2(tmp_path / "sd2")
    save_file(single_file(folder, "sd2"), tmp_path / "sd2.safetensors")
    (folder / "scheduler/scheduler_config.json").write_text('{"beta_schedule": "scaled_linear"}')
    overrides = (
        "model.family=sd2",
        f"model.path={tmp_path / 'sd2.safetensors'}",
        f"model.config_path={folder}",
    )
    with pytest.raises(ConfigError, match=r"does not say what the UNet predicts"):
        tiny.survey(*overrides)
    tiny.survey(*overrides, "model.prediction_type=v_prediction")


@effect("model.vae_path")
def test_another_vae_makes_other_latents_and_another_cache(tiny: Tiny, tmp_path: Path) -> None:
    weights = {name: tensor * 1.5 for name, tensor in load_file(tiny.base / VAE).items()}
    save_file(weights, tmp_path / "vae.safetensors")
    built = tiny.build(f"model.vae_path={tmp_path / 'vae.safetensors'}")
    found = built.job.module.codec().vae.quant_conv.weight
    assert torch.equal(found, weights["quant_conv.weight"])
    assert not torch.equal(built.epoch()[0]["moments"], tiny.build().epoch()[0]["moments"])


@effect("model.vae_path")
def test_a_missing_vae_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"model\.vae_path is nowhere, which does not exist"):
        tiny.survey("model.vae_path=nowhere")
    unet = tiny.base / "unet" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(
        UserError, match=r"has no vae; model\.vae_path must be a folder or file with"
    ):
        tiny.survey(f"model.vae_path={unet}")


@effect("model.vae_dtype")
def test_the_vae_is_stored_in_its_own_dtype(tiny: Tiny) -> None:
    exact, rounded = (
        tiny.build(f"model.vae_dtype={word}", "data.latent_cache.enabled=false").job.module
        for word in ("fp32", "bf16")
    )
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    moments = [module.codec().moments(images) for module in (exact, rounded)]
    assert {p.dtype for p in rounded.codec().parameters()} == {torch.bfloat16}
    assert moments[1].dtype == torch.float32
    assert 0 < (moments[0] - moments[1]).abs().max() < 0.1 * moments[0].abs().max()


@effect("model.vae_dtype")
@pytest.mark.parametrize(
    ("word", "advice"), [("fp32", "check the VAE's weights"), ("bf16", "set model.vae_dtype=fp32")]
)
def test_latents_that_are_not_finite_stop_with_the_images_name(
    tiny: Tiny, word: str, advice: str
) -> None:
    built = tiny.build(
        "data.latent_cache.enabled=false", "trainer.max_steps=1", f"model.vae_dtype={word}"
    )
    with torch.no_grad():
        built.job.module.codec().vae.quant_conv.weight.fill_(float("nan"))
    said = rf"image_\d+\.png is encoded to values that are not finite; take it out, or {advice}"
    with pytest.raises(DataError, match=said):
        built.fit()


@effect("model.max_tokens")
def test_max_tokens_lengthen_the_context_for_every_caption(tiny: Tiny) -> None:
    conditioner = tiny.build("model.max_tokens=150").job.module.conditioner
    assert conditioner.encode(["red"]).hidden_states.shape == (1, 152, 32)
    with pytest.raises(ConfigError, match=r"model\.max_tokens is 100; it must be a multiple of 75"):
        tiny.survey("model.max_tokens=100")


@effect("model.caption_overflow")
@pytest.mark.parametrize("action", ["chunk", "truncate", "skip", "error"])
def test_a_caption_that_is_too_long(tiny: Tiny, tmp_path: Path, action: str) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for file in tiny.images.iterdir():
        (images / file.name).write_bytes(file.read_bytes())
    (images / "image_000.txt").write_text(" ".join(["red"] * 80))
    overrides = (f"data.image_dir={images}", f"model.caption_overflow={action}")
    if action == "error":
        with pytest.raises(ConfigError, match=r"1 of 12 captions are longer .* \(image_000\.png"):
            tiny.survey(*overrides)
        return
    survey = tiny.survey(*overrides)
    assert survey.caption_note.startswith("1 of 12 captions are longer than 75 tokens; ")
    expected = {"chunk": (2, 12), "truncate": (1, 12), "skip": (1, 11)}[action]
    assert (survey.text_rows, len(survey.items)) == expected
    assert len(survey.skipped) == (action == "skip")


@effect("model.prompt_weights")
def test_prompt_weights_weigh_the_states_of_words(tiny: Tiny) -> None:
    plain = tiny.build().job.module.conditioner.encode(["red circle"]).hidden_states
    conditioner = tiny.build("model.prompt_weights=true").job.module.conditioner
    found = conditioner.encode(["(red:2) circle"]).hidden_states
    torch.testing.assert_close(found[:, 1], 2 * plain[:, 1])
    torch.testing.assert_close(found[:, 2:], plain[:, 2:])


@effect("model.micro_conditioning")
def test_sizes_are_the_true_ones_or_always_those_of_a_whole_square(
    tiny: Tiny, tmp_path: Path
) -> None:
    base = make_tiny_sdxl(tmp_path / "sdxl")
    overrides = (f"model.path={base}", "model.family=sdxl", "model.clip_skip=null")
    built = tiny.build(*overrides)
    (batch, *_) = built.epoch()
    time_ids = built.job.module.conditioning(batch).time_ids
    assert time_ids is not None
    for number, index in enumerate(batch["index"].tolist()):
        item = built.survey.items[index]
        true = [item.record.height, item.record.width, item.plan.top, item.plan.left]
        assert time_ids[number].tolist() == [*true, item.bucket.height, item.bucket.width]
    fixed = tiny.build(*overrides, "model.micro_conditioning=fixed").job.module
    told = fixed.conditioning(batch).time_ids
    assert told is not None
    assert told.tolist() == [[64, 64, 0, 0, 64, 64]] * len(batch["keys"])


@effect("model.attention")
def test_eager_attention_gives_the_same_loss(tiny: Tiny) -> None:
    built = tiny.build("model.attention=eager")
    processors = set(map(type, built.job.module.denoiser.unet.attn_processors.values()))
    assert processors == {AttnProcessor}
    usual = tiny.run("logger=csv").column("train/loss")
    eager = tiny.run("logger=csv", "model.attention=eager").column("train/loss")
    assert eager == pytest.approx(usual, rel=1e-4)


@effect("model.attention")
@pytest.mark.parametrize("kind", ["xformers", "sdpa_efficient"])
def test_attention_that_cannot_run_is_refused_before_weights_load(tiny: Tiny, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.attention is {kind}, which cannot run on cpu"):
        tiny.survey(f"model.attention={kind}")

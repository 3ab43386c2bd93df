"""The base: which one, what it predicts, how it is held in memory, how captions are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from loralab import demo
from loralab.data.buckets import Bucket
from loralab.errors import ConfigError
from loralab.training.callbacks.preview import Preview
from tests.effects.registry import effect
from tests.effects.runs import NUM_IMAGES, Tiny, changed
from tests.tiny import make_tiny_sd1


@effect("model.path")
def test_another_base_trains_another_adapter(tiny: Tiny) -> None:
    other = make_tiny_sd1(tiny.root / "other-base", seed=1)
    found = tiny.run(f"model.path={other}").adapter
    assert changed(tiny.run().adapter, found)


@effect("model.path")
def test_a_missing_base_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"^model\.path is .*nowhere") as caught:
        tiny.survey("model.path=nowhere")
    assert "model.path" in {problem.key for problem in caught.value.problems}


@effect("model.family")
def test_a_base_of_another_family_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    base = make_tiny_sd1(tmp_path / "base")
    config = json.loads((base / "unet" / "config.json").read_text())
    config["use_linear_projection"] = True  # as Stable Diffusion 2 has it
    (base / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"laid out like sd2, but model\.family is sd1"):
        tiny.survey(f"model.path={base}")


@effect("model.prediction_type")
def test_v_prediction_makes_the_velocity_the_target(tiny: Tiny) -> None:
    module = tiny.build("model.prediction_type=v_prediction").job.module
    latents, noise = torch.randn(2, 3, 4, 8, 8).unbind()
    timesteps = torch.tensor([0, 500, 999])
    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    target = module.objective.schedule.target(latents, noise, timesteps)
    torch.testing.assert_close(target, reference.get_velocity(latents, noise, timesteps))


@effect("model.prediction_type")
def test_without_a_prediction_type_the_scheduler_file_decides(tiny: Tiny, tmp_path: Path) -> None:
    base = make_tiny_sd1(tmp_path / "base", prediction_type="v_prediction")
    latents, noise = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)
    first = torch.tensor([0])  # the velocity of silence is sqrt(1 - beta) of the noise
    schedule = tiny.build(f"model.path={base}").job.module.objective.schedule
    target = schedule.target(latents, noise, first)
    torch.testing.assert_close(target, torch.full_like(noise, (1 - 0.00085) ** 0.5))
    schedule = tiny.build(
        f"model.path={base}", "model.prediction_type=epsilon"
    ).job.module.objective
    assert torch.equal(schedule.schedule.target(latents, noise, first), noise)


@effect("model.native_resolution")
def test_native_resolution_sets_the_size_of_training_and_previews(tiny: Tiny) -> None:
    built = tiny.build("model.native_resolution=96", "preview.prompts=[red]")
    sizes = {item.bucket for item in built.survey.items}
    assert Bucket(96, 96) in sizes
    assert all(64 * 64 < size.height * size.width <= 96 * 96 for size in sizes)
    (preview,) = [c for c in built.job.trainer.callbacks if isinstance(c, Preview)]
    assert preview.options.size == (96, 96)


@effect("model.clip_skip")
def test_clip_skip_two_takes_the_layer_before_the_last_through_the_final_norm(tiny: Tiny) -> None:
    found = tiny.build("model.clip_skip=2").job.module.conditioner.encode(["red circle"])
    encoder = CLIPTextModel.from_pretrained(tiny.base / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(tiny.base / "tokenizer")
    ids = tokenizer(["red circle"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        states = encoder(ids, output_hidden_states=True).hidden_states
        expected = encoder.final_layer_norm(states[1])  # 0 embeddings, 1 first layer, 2 last
        last = encoder(ids).last_hidden_state
    torch.testing.assert_close(found.hidden_states.detach(), expected)
    assert not torch.allclose(expected, last, atol=0.1)


@effect("model.clip_skip")
def test_more_clip_skip_than_layers_is_refused_before_weights_load(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"model\.clip_skip is 3.*2 layers"):
        tiny.survey("model.clip_skip=3")


@effect("model.weight_dtype")
@pytest.mark.parametrize(
    ("word", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_weight_dtype_is_that_of_the_base_alone(tiny: Tiny, word: str, dtype: torch.dtype) -> None:
    built = tiny.build(f"model.weight_dtype={word}")
    for part in built.job.module.adapted.values():
        assert {p.dtype for p in part.parameters() if not p.requires_grad} == {dtype}
        assert {p.dtype for p in part.parameters() if p.requires_grad} == {torch.float32}


@effect("model.weight_dtype", "trainer.precision")
@pytest.mark.parametrize("adapter", ["fp32", "bf16"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("word", ["fp32", "bf16", "fp16"])
def test_weights_and_precision_train_together_or_are_refused(
    tiny: Tiny, word: str, precision: str, adapter: str
) -> None:
    options = (
        f"model.weight_dtype={word}", f"trainer.precision={precision}", "trainer.max_steps=1",
        f"adapter.weight_dtype={adapter}",
    )  # fmt: skip
    if (word, precision) != ("fp16", "bf16-mixed"):
        assert tiny.run(*options).state["state"] == "finished"
        return
    with pytest.raises(ConfigError) as refusal:
        tiny.survey(*options)
    (problem,) = refusal.value.problems
    assert problem.key == "model.weight_dtype"
    assert problem.message.startswith("model.weight_dtype is fp16")
    assert "trainer.precision=bf16-mixed on cpu" in problem.message
    assert (
        "set model.weight_dtype to bf16 or fp32, or trainer.precision=32-true." in problem.message
    )


@effect("model.weight_dtype")
def test_a_base_in_bfloat16_trains_to_nearly_the_same_loss(tiny: Tiny) -> None:
    exact = tiny.run("logger=csv").column("train/loss")
    rounded = tiny.run("logger=csv", "model.weight_dtype=bf16").column("train/loss")
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


@effect("model.gradient_checkpointing")
def test_checkpointing_runs_blocks_twice_and_gives_the_same_gradients(tiny: Tiny) -> None:
    gradients, calls = [], []
    for word in ("false", "true"):
        built = tiny.build(f"model.gradient_checkpointing={word}", "trainer.max_steps=1")
        parts = built.job.module.adapted
        counts = [
            _count_calls(parts["unet"].get_submodule("down_blocks.1.resnets.0")),
            _count_calls(parts["text_encoder"].get_submodule("encoder.layers.0.mlp")),
        ]
        built.fit()
        calls.append([len(count) for count in counts])
        gradients.append(
            {f"{part}.{name}": p.grad for part, module in parts.items()
             for name, p in module.named_parameters() if p.grad is not None}
        )  # fmt: skip
    assert calls == [[1, 1], [2, 2]]  # the second time is the recomputation
    assert len(gradients[0]) == 80, "two matrices of 32 and 8 layers"
    torch.testing.assert_close(gradients[0], gradients[1])


def _count_calls(module: nn.Module) -> list[None]:
    calls: list[None] = []
    # Before the call: recomputation stops as soon as it has what backward needs.
    module.register_forward_pre_hook(lambda *_: calls.append(None))
    return calls


@effect("model.text_cache_mib")
def test_a_frozen_text_encoder_reads_a_caption_once_and_no_bit_changes(tiny: Tiny) -> None:
    # Two epochs of seven steps; previews and validation are off.
    options = ("adapter.text_encoder.enabled=false", "trainer.max_steps=14")
    weights, calls = [], []
    for size in (256, 0):
        built = tiny.build(f"model.text_cache_mib={size}", *options)
        layer = built.job.module.family.parts["text_encoder"].get_submodule("encoder.layers.0.mlp")
        calls.append(_count_calls(layer))
        built.fit()
        weights.append(built.job.module.state_dict())
    texts = {file.read_text() for file in tiny.images.glob("*.txt")}
    assert [len(count) for count in calls] == [len(texts), 2 * NUM_IMAGES]
    assert changed(*weights) == []


@effect("model.allow_demo")
def test_own_images_on_the_demo_base_need_allow_demo(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"model\.allow_demo=true"):
        tiny.config(f"model.path={demo.base_dir()}")
    assert tiny.config(f"model.path={demo.base_dir()}", "model.allow_demo=true").model.allow_demo

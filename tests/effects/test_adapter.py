"""The adapter: its size, its scale, its layers, its rates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import Tiny, TinyRun

LR = 0.01  # optimizer.lr of the tiny configuration


@effect("adapter.kind")
def test_a_lora_file_holds_two_factors_and_alpha_for_each_layer(tiny: Tiny) -> None:
    endings = [key.split(".", 1)[1] for key in tiny.run("adapter.kind=lora").adapter]
    assert sorted(set(endings)) == ["alpha", "lora_down.weight", "lora_up.weight"]
    assert len(endings) == 3 * 40


@effect("adapter.rank")
def test_rank_is_the_inner_size_of_every_layer(tiny: Tiny) -> None:
    tensors = tiny.run("adapter.rank=3").adapter
    downs = [tensor for key, tensor in tensors.items() if "lora_down" in key]
    ups = [tensor for key, tensor in tensors.items() if "lora_up" in key]
    assert {down.shape[0] for down in downs} == {up.shape[1] for up in ups} == {3}


@effect("adapter.alpha")
def test_alpha_is_in_the_file_as_given(tiny: Tiny) -> None:
    tensors = tiny.run("adapter.alpha=1").adapter
    assert {float(tensor) for key, tensor in tensors.items() if key.endswith("alpha")} == {1.0}


@effect("adapter.alpha")
def test_half_the_alpha_halves_the_first_gradient(tiny: Tiny) -> None:
    # While `up` is zero the loss sees alpha only through d(output)/d(up) = alpha / rank * down(x).
    half, whole = first_gradients(tiny, "adapter.alpha=1"), first_gradients(tiny)
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-4
    torch.testing.assert_close(
        {name: 2 * gradient for name, gradient in half.items()}, whole, rtol=1e-4, atol=1e-8
    )


@effect("adapter.dropout")
def test_dropout_changes_gradients_and_is_the_same_draw_every_time(tiny: Tiny) -> None:
    plain = first_gradients(tiny)
    once, again = (first_gradients(tiny, "adapter.dropout=0.5") for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)
    differing = [name for name in once if not torch.allclose(once[name], plain[name], rtol=0.01)]
    assert len(differing) > len(once) / 2


def first_gradients(tiny: Tiny, *overrides: str) -> dict[str, Tensor]:
    """Return the gradients of the `up` factors in the first step; nothing is clipped."""
    built = tiny.build(*overrides, "trainer.max_steps=1", "trainer.gradient_clip_val=null")
    built.fit()
    return {
        f"{part}.{name}": parameter.grad
        for part, module in built.job.module.adapted.items()
        for name, parameter in module.named_parameters()
        if "lora_B" in name and parameter.grad is not None
    }


def layers(run: TinyRun) -> set[str]:
    return {key.split(".")[0] for key in run.adapter}


@effect("adapter.unet.enabled")
def test_a_disabled_unet_is_not_in_the_file(tiny: Tiny) -> None:
    found = layers(tiny.run("adapter.unet.enabled=false"))
    assert len(found) == 8
    assert all(layer.startswith("lora_te_") for layer in found)


@effect("adapter.text_encoder.enabled")
def test_a_disabled_text_encoder_is_not_in_the_file(tiny: Tiny) -> None:
    found = layers(tiny.run("adapter.text_encoder.enabled=false"))
    assert len(found) == 32
    assert all(layer.startswith("lora_unet_") for layer in found)


@effect("adapter.unet.targets", "adapter.text_encoder.targets")
def test_only_the_targets_are_adapted(tiny: Tiny) -> None:
    found = layers(tiny.run("adapter.unet.targets=[to_q]", "adapter.text_encoder.targets=[fc1]"))
    unet = {layer for layer in found if layer.startswith("lora_unet_")}
    assert len(unet) == 8, "self- and cross-attention of four blocks"
    assert all(layer.endswith("_to_q") for layer in unet)
    assert {layer.removeprefix("lora_te_text_model_encoder_layers_") for layer in found - unet} == {
        "0_mlp_fc1",
        "1_mlp_fc1",
    }


@effect("adapter.unet.targets")
def test_a_run_after_one_with_convolutions_adapts_what_it_would_alone(tiny: Tiny) -> None:
    before = layers(tiny.run())
    with_convolutions = layers(tiny.run_anew("adapter=locon"))
    assert any("resnets" in layer for layer in with_convolutions)
    assert layers(tiny.run_anew()) == before
    assert not any("resnets" in layer for layer in before)


@effect("adapter.unet.targets")
def test_a_target_that_matches_nothing_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"adapter\.unet\.targets.*to_qq"):
        tiny.survey("adapter.unet.targets=[to_qq]")


@effect(
    "adapter.unet.lr",
    "adapter.unet.lr_scale",
    "adapter.text_encoder.lr",
    "adapter.text_encoder.lr_scale",
)
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_rate_of_a_part_is_its_own_or_a_multiple_of_the_optimizers(tiny: Tiny, part: str) -> None:
    assert rates(tiny, f"adapter.{part}.lr_scale=0.25")[part] == pytest.approx(LR / 4)
    assert rates(tiny, f"adapter.{part}.lr=0.07")[part] == 0.07
    both = rates(tiny, f"adapter.{part}.lr=0.07", f"adapter.{part}.lr_scale=0.25")
    assert both[part] == 0.07, "the absolute rate wins"
    (other,) = both.keys() - {part}
    assert both[other] == rates(tiny)[other]


def rates(tiny: Tiny, *overrides: str) -> dict[str, float]:
    optimizer = tiny.build(*overrides).job.module.configure_optimizers()["optimizer"]
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


@effect("adapter.unet.lr", "adapter.text_encoder.lr")
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_rate_of_zero_leaves_the_part_as_it_began(tiny: Tiny, part: str) -> None:
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part]
    tensors = tiny.run(f"adapter.{part}.lr=0").adapter
    ups = {key: float(tensor.abs().max()) for key, tensor in tensors.items() if "lora_up" in key}
    assert {size for key, size in ups.items() if key.startswith(prefix)} == {0.0}
    assert all(size > 0 for key, size in ups.items() if not key.startswith(prefix))


def test_a_part_whose_rate_is_zero_has_no_share_in_the_clipped_gradient(tiny: Tiny) -> None:
    # Plain steps are as long as the clipped gradient; a smaller UNet would show at once.
    plain = ("optimizer=sgd", "optimizer.lr=1", "trainer.gradient_clip_val=1e-3")
    idle = tiny.run(*plain, "adapter.text_encoder.lr=0").adapter
    without = tiny.run(*plain, "adapter.text_encoder.enabled=false").adapter
    assert without
    for key, tensor in without.items():
        assert torch.equal(idle[key], tensor), key

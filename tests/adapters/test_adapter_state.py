"""The adapter's state and norm."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from loralab.adapters.inject import inject
from loralab.adapters.layers import adapter_layers, live_weights
from loralab.adapters.state import adapter_norm, adapter_state, load_adapter_state
from loralab.errors import AdapterError
from tests.adapters.adapted import CONVOLUTIONS, SD_SCRIPTS_UNET, lora, randomize, run_unet


def test_state_has_two_tensors_per_module_and_nothing_of_the_base(
    trained: dict[str, nn.Module],
) -> None:
    state = adapter_state(trained["text_encoder"])
    assert len(state) == 2 * 12
    assert state["encoder.layers.1.mlp.fc1.lora_A.weight"].shape == (3, 32)
    assert state["encoder.layers.1.mlp.fc1.lora_B.weight"].shape == (64, 3)


def test_loaded_state_gives_the_same_output(unet: UNet2DConditionModel) -> None:
    inject(unet, lora(*SD_SCRIPTS_UNET, *CONVOLUTIONS), part="unet")
    randomize(unet, seed=3)
    expected = run_unet(unet)
    saved = {key: tensor.clone() for key, tensor in adapter_state(unet).items()}
    randomize(unet, seed=4)
    assert not torch.equal(run_unet(unet), expected)
    load_adapter_state(unet, saved)
    assert torch.equal(run_unet(unet), expected)


def test_every_missing_unexpected_and_misshapen_key_is_named_and_nothing_is_loaded(
    trained: dict[str, nn.Module],
) -> None:
    encoder = trained["text_encoder"]
    state = {key: tensor.clone() + 1 for key, tensor in adapter_state(encoder).items()}
    before = {key: tensor.clone() for key, tensor in adapter_state(encoder).items()}
    first, second, third, *_ = state
    del state[first], state[second]
    state[third] = torch.zeros(7, 7)
    state["encoder.layers.9.lora_A.weight"] = torch.zeros(1)
    with pytest.raises(AdapterError) as caught:
        load_adapter_state(encoder, state)
    assert [problem.key for problem in caught.value.problems] == [
        first,
        second,
        "encoder.layers.9.lora_A.weight",
        third,
    ]
    assert "has shape (7, 7) in the adapter's state; it must be (3, 32)" in str(caught.value)
    after = adapter_state(encoder)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_norm_is_that_of_the_formed_updates(trained: dict[str, nn.Module]) -> None:
    for module in trained.values():
        merged = 0.0
        for name, layer in adapter_layers(module).items():
            delta = layer.get_delta_weight("default").detach()  # PEFT's own
            assert torch.allclose(live_weights(module)[name].delta(), delta, rtol=1e-5, atol=1e-7)
            merged += float(delta.double().square().sum())
        norm = adapter_norm(module)
        assert norm.shape == ()
        assert float(norm) == pytest.approx(merged**0.5, rel=1e-5)


def test_norm_is_zero_without_an_adapter_and_at_the_start(unet: UNet2DConditionModel) -> None:
    assert float(adapter_norm(unet)) == 0.0
    inject(unet, lora("to_q"), part="unet")
    assert float(adapter_norm(unet)) == 0.0

"""Checkpoints hold the adapter and nothing else, and are refused when they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loralab.data.dataset import Item
from loralab.errors import AdapterError

Make = Callable[..., Any]


def test_checkpoint_holds_adapter_tensors_only(
    make_module: Make, make_data: Make, make_trainer: Make, items: list[Item], tmp_path: Path
) -> None:
    module = make_module(optimizer=torch.optim.AdamW, rate=1e-3)
    trainer = make_trainer(max_steps=1)
    trainer.fit(module, make_data(items))
    path = tmp_path / "a.ckpt"
    trainer.save_checkpoint(path)

    content = torch.load(path, weights_only=True)

    trained = {
        id(p) for part in module.adapted.values() for p in part.parameters() if p.requires_grad
    }
    assert len(content["state_dict"]) == len(trained)
    assert all("lora_" in key for key in content["state_dict"])
    assert {key.split(".")[0] for key in content["state_dict"]} == {"unet", "text_encoder"}
    numbers = sum(tensor.numel() for tensor in content["state_dict"].values())
    # Weights and two moments of float32, and some bookkeeping for each tensor.
    assert path.stat().st_size < 3 * 4 * numbers + 1200 * 3 * len(trained) + 20_000


def test_state_is_restored_bit_for_bit(make_module: Make) -> None:
    one, other = make_module(), make_module(random=False)
    other.load_state_dict(one.state_dict())
    for key, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)


def test_state_that_does_not_fit_is_refused_naming_every_key(make_module: Make) -> None:
    module = make_module()
    state = {key: value.clone() for key, value in module.state_dict().items()}
    before = {key: value.clone() for key, value in state.items()}
    missing, reshaped, *_ = sorted(key for key in state if key.startswith("unet"))
    del state[missing]
    state[reshaped] = torch.zeros(1, 2)
    state["unet.other.lora_A.weight"] = torch.zeros(1)
    state["vae.conv.lora_A.weight"] = torch.zeros(1)

    with pytest.raises(AdapterError) as caught:
        module.load_state_dict(state)

    text = str(caught.value)
    for key in (missing, reshaped, "unet.other.lora_A.weight", "vae.conv.lora_A.weight"):
        assert key.removeprefix("unet.") in text
    assert "(1, 2)" in text
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), "half a state was loaded"


def test_state_of_a_part_that_is_not_adapted_is_refused(make_module: Make) -> None:
    state = make_module().state_dict()
    with pytest.raises(AdapterError, match="text_encoder"):
        make_module(parts=("unet",)).load_state_dict(state)

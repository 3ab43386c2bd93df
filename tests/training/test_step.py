"""The training step against the same step written by hand with diffusers, peft and torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel

from loralab.data.dataset import Item
from loralab.training.module import LoRATrainingModule
from tests.training.conftest import TARGETS, adapter_of

Make = Callable[..., Any]


def recorded_batch(size: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    pairs = torch.tensor([[64, 64]] * size)
    return {
        "latents": torch.randn(size, 4, 8, 8, generator=generator),
        "noise": torch.randn(size, 4, 8, 8, generator=generator),
        "timesteps": torch.tensor([3, 480, 999])[:size],
        "input_ids": torch.randint(0, 500, (size, 77), generator=generator),
        "captions": [""] * size,
        "keys": [f"{n}#0" for n in range(size)],
        "epoch": 0,
        "micro_batch": 0,
        "original_size": pairs,
        "crop_top_left": pairs * 0,
        "target_size": pairs,
        "loss_weight": torch.full((size,), 1 / size),
        "index": torch.arange(size),
    }


def by_hand(
    base: Path, module: LoRATrainingModule, batch: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return loss and adapter gradients from the libraries alone."""
    unet: Any = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    text: Any = CLIPTextModel.from_pretrained(base / "text_encoder")
    parts = {"unet": unet, "text_encoder": text}
    for name, part in parts.items():
        part.requires_grad_(False)
        part.add_adapter(LoraConfig(r=4, lora_alpha=7, target_modules=list(TARGETS[name])))
        own = dict(part.named_parameters())
        for key, value in module.state_dict().items():
            if key.startswith(f"{name}."):
                path = key.removeprefix(f"{name}.").removesuffix(".weight")
                own[f"{path}.default.weight"].data.copy_(value)
    scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    noisy = scheduler.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
    hidden = text(batch["input_ids"])[0]
    prediction = unet(noisy, batch["timesteps"], encoder_hidden_states=hidden).sample
    loss = functional.mse_loss(prediction, batch["noise"])
    loss.backward()
    gradients = {}
    for name, part in parts.items():
        for key, parameter in part.named_parameters():
            if parameter.grad is not None:
                gradients[f"{name}.{key.replace('.default', '')}"] = parameter.grad
    return loss.detach(), gradients


def test_loss_and_gradients_equal_those_written_by_hand(
    base: Path, make_module: Make, make_trainer: Make
) -> None:
    module, batch = make_module(), recorded_batch()
    module.trainer = make_trainer()
    loss = module.training_step(batch, 0)
    loss.backward()
    ours = {
        f"{name}.{key.replace('.default', '')}": parameter.grad
        for name, part in module.adapted.items()
        for key, parameter in part.named_parameters()
        if parameter.requires_grad
    }

    expected, gradients = by_hand(base, module, batch)

    torch.testing.assert_close(loss.detach(), expected, rtol=1e-6, atol=0)
    assert ours.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(ours[key], gradient, rtol=1e-4, atol=1e-7)


def test_prediction_changes_with_the_caption_and_the_timestep(
    make_module: Make, make_trainer: Make
) -> None:
    module = make_module()
    module.trainer = make_trainer()
    losses = []
    for change in (
        {},
        {"input_ids": torch.zeros(3, 77).long()},
        {"timesteps": torch.full((3,), 9)},
    ):
        losses.append(float(module.training_step(recorded_batch() | change, 0).detach()))
    assert len(set(losses)) == 3


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 2, 3, 4)], ids=["alike", "weighted"])
def test_step_does_not_depend_on_how_its_window_is_split(
    make_module: Make,
    make_data: Make,
    make_trainer: Make,
    items: list[Item],
    weights: tuple[float, ...],
) -> None:
    square = [item for item in items if item.bucket.height == 64]
    square = (square * 2)[:4]
    chosen = [
        replace(item, record=replace(item.record, weight=float(weight)), repeat=number)
        for number, (item, weight) in enumerate(zip(square, weights, strict=True))
    ]
    results = []
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        module = make_module()
        trainer: L.Trainer = make_trainer(max_steps=1, accumulate_grad_batches=accumulation)
        trainer.fit(module, make_data(chosen, batch_size=batch_size, accumulation=accumulation))
        assert trainer.global_step == 1
        results.append(adapter_of(module))
    before = adapter_of(make_module())
    moved = max(float((results[0][key] - before[key]).abs().max()) for key in before)
    assert moved > 1e-3
    for other in results[1:]:
        for key, value in results[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-4, atol=moved * 1e-5)


def test_filler_of_a_short_window_changes_nothing(
    make_module: Make, make_data: Make, make_trainer: Make, items: list[Item]
) -> None:
    square = [item for item in items if item.bucket.height == 64][:3]
    assert len(square) == 3
    results = []
    for batch_size, accumulation in ((3, 1), (1, 4)):  # the second has one filler
        module = make_module()
        trainer = make_trainer(max_steps=1, accumulate_grad_batches=accumulation)
        trainer.fit(module, make_data(square, batch_size=batch_size, accumulation=accumulation))
        results.append(adapter_of(module))
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-4, atol=1e-6)


def test_dropout_depends_on_the_place_and_not_on_history(
    make_module: Make, make_trainer: Make
) -> None:
    module = make_module(dropout=0.5)
    module.trainer = make_trainer()
    batch = recorded_batch()
    first = module.training_step(batch, 0)
    torch.rand(7)
    again = module.training_step(batch, 1)
    other = module.training_step(batch | {"micro_batch": 1}, 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_each_part_has_its_own_rate_in_the_optimizer(make_module: Make, make_trainer: Make) -> None:
    module = make_module(
        learning_rates={"unet": 1e-3, "text_encoder": 2e-4}, lr_multiplier=lambda step: 0.5
    )
    module.trainer = make_trainer()
    optimizer = module.configure_optimizers()["optimizer"]
    assert type(optimizer) is torch.optim.SGD
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"unet": 5e-4, "text_encoder": 1e-4}
    counts = [len(group["params"]) for group in optimizer.param_groups]
    assert sum(counts) == len(module.state_dict())


def test_only_the_adapter_learns(
    base: Path, make_module: Make, make_data: Make, make_trainer: Make, items: list[Item]
) -> None:
    module = make_module()
    trainer = make_trainer(max_steps=2)
    trainer.fit(module, make_data(items))
    fresh: Any = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    trained = {
        key.replace(".base_layer", ""): value
        for key, value in module.adapted["unet"].named_parameters()
        if not value.requires_grad
    }
    for key, value in fresh.named_parameters():
        assert torch.equal(trained[key], value), key

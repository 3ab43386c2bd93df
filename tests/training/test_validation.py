"""val/loss against the same figure computed by hand, and what it may not depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from loralab.data.dataset import Item, read_pixels
from tests.adapters.adapted import randomize

Make = Callable[..., Any]
SEED, STRATA = 11, (166, 500, 833)  # the middles of three thirds of 1000


def by_hand(base: Path, items: list[Item], unet: Any, text: Any) -> float:
    """Return the mean error over images and strata, from the libraries alone."""
    vae: Any = AutoencoderKL.from_pretrained(base, subfolder="vae")
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    errors = []
    for item in items:
        pixels = read_pixels(item, flipped=False)[None]
        ids = tokenizer(
            item.record.caption, padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        for number, step in enumerate(STRATA):
            name = f"{SEED}:0:{item.key}:validation:{number}"
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
                noise = torch.randn(
                    latents.shape[1:], generator=torch.Generator().manual_seed(seed)
                )[None]
                noisy = scheduler.add_noise(latents, noise, torch.tensor([step]))
                prediction = unet(noisy, step, encoder_hidden_states=text(ids)[0]).sample
                errors.append(float(functional.mse_loss(prediction, noise)))
    return sum(errors) / len(errors)


@pytest.fixture
def validate(make_data: Make, make_trainer: Make, items: list[Item]) -> Make:
    """Validate a module on four images and return the figures."""

    def run(module: Any, *, batch_size: int = 2, num_workers: int = 0) -> dict[str, float]:
        data = make_data(items[4:], items[:4], batch_size=batch_size, num_workers=num_workers)
        trainer = make_trainer()
        trainer.validate(module, data, verbose=False)
        return {key: float(value) for key, value in trainer.callback_metrics.items()}

    return run


def test_figures_equal_those_computed_by_hand(
    base: Path, make_module: Make, validate: Make, items: list[Item]
) -> None:
    module = make_module()
    figures = validate(module)
    live = by_hand(base, items[:4], module.adapted["unet"], module.adapted["text_encoder"])
    untouched = by_hand(
        base,
        items[:4],
        UNet2DConditionModel.from_pretrained(base, subfolder="unet"),
        CLIPTextModel.from_pretrained(base / "text_encoder"),
    )
    assert figures["val/loss"] == pytest.approx(live, rel=1e-5)
    assert figures["val/loss_base"] == pytest.approx(untouched, rel=1e-5)
    assert abs(live - untouched) > 1e-4
    by_step = [figures[f"val/loss_at_timestep/{step}"] for step in STRATA]
    assert sum(by_step) / 3 == pytest.approx(figures["val/loss"], rel=1e-6)


def test_new_adapter_has_exactly_the_loss_of_the_base(make_module: Make, validate: Make) -> None:
    figures = validate(make_module(random=False))
    assert figures["val/loss"] == figures["val/loss_base"]


def test_loss_does_not_depend_on_batch_size_or_workers(make_module: Make, validate: Make) -> None:
    module = make_module()
    one, three = validate(module, batch_size=1), validate(module, batch_size=3)
    assert one["val/loss"] == pytest.approx(three["val/loss"], rel=1e-6)
    assert validate(module, batch_size=3, num_workers=1) == three


def test_second_validation_reports_its_own_mean_and_the_first_base(
    make_module: Make, validate: Make
) -> None:
    module = make_module()
    first = validate(module)
    randomize(module.adapted["unet"], seed=9, std=0.1)
    second = validate(module)
    assert second["val/loss"] != first["val/loss"]
    assert second["val/loss_base"] == first["val/loss_base"]
    module.base_errors = None
    assert validate(module) == second


def test_validation_changes_neither_training_nor_its_dropout(
    make_module: Make, make_data: Make, make_trainer: Make, items: list[Item]
) -> None:
    results = []
    for interval in (10_000, 1):
        module = make_module(dropout=0.3)
        trainer = make_trainer(max_steps=3, val_check_interval=interval)
        trainer.fit(module, make_data(items[4:], items[:4]))
        results.append(module.state_dict())
        assert ("val/loss" in trainer.callback_metrics) == (interval == 1)
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key

"""Figures of validation against the same computed by hand, and what they may not depend on."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPTextModel, CLIPTokenizer

from loralab.data.dataset import Item, read_pixels
from loralab.training.callbacks.validation import Validation
from loralab.training.validation import measure
from tests.adapters.adapted import randomize

Make = Callable[..., Any]
SEED, STRATA = 11, (166, 500, 833)  # the middles of three thirds of 1000


def by_hand(base: Path, items: list[Item], unet: Any, text: Any) -> list[list[float]]:
    """Return the error of each image at each stratum, from the libraries alone."""
    vae: Any = AutoencoderKL.from_pretrained(base, subfolder="vae")
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    rows = []
    for item in items:
        pixels = read_pixels(item)[None]
        ids = tokenizer(
            item.record.captions[0], padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        rows.append([])
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
                rows[-1].append(float(functional.mse_loss(prediction, noise)))
    return rows


def stderr(values: list[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5


@pytest.fixture
def validate(make_data: Make, make_trainer: Make, items: list[Item]) -> Make:
    """Validate a module on four images, or some others, and return the figures."""

    def run(
        module: Any,
        *,
        validation: Validation | None = None,
        held_out: list[Item] | None = None,
        probe: list[Item] | None = None,
        **options: Any,
    ) -> dict[str, float]:
        validation = validation or Validation(seed=SEED, strata=3, every_n_steps=None)
        data = make_data(items[4:], held_out or items[:4], probe_items=probe or [], **options)
        trainer = make_trainer(callbacks=[validation])
        trainer.datamodule = data
        validation.validate(trainer, module)
        return validation.figures(module)

    return run


def test_figures_equal_those_computed_by_hand(
    base: Path, make_module: Make, validate: Make, items: list[Item]
) -> None:
    module = make_module()
    figures = validate(module, probe=items[4:7])
    live_parts = module.adapted["unet"], module.adapted["text_encoder"]
    base_parts = (
        UNet2DConditionModel.from_pretrained(base, subfolder="unet"),
        CLIPTextModel.from_pretrained(base / "text_encoder"),
    )
    live, untouched = by_hand(base, items[:4], *live_parts), by_hand(base, items[:4], *base_parts)
    probe, probe_base = (by_hand(base, items[4:7], *p) for p in (live_parts, base_parts))
    losses = [statistics.fmean(row) for row in live]
    gains = [statistics.fmean(row) - loss for row, loss in zip(untouched, losses, strict=True)]
    trained = [statistics.fmean(a) - statistics.fmean(b)
               for a, b in zip(probe_base, probe, strict=True)]  # fmt: skip
    expected = {
        "val/loss": statistics.fmean(losses),
        "val/loss_stderr": stderr(losses),
        "val/loss_base": statistics.fmean(statistics.fmean(row) for row in untouched),
        "val/improvement": statistics.fmean(gains),
        "val/improvement_stderr": stderr(gains),
        "val/loss_train_probe": statistics.fmean(statistics.fmean(row) for row in probe),
        "val/gap": statistics.fmean(trained) - statistics.fmean(gains),
        "val/gap_stderr": (stderr(trained) ** 2 + stderr(gains) ** 2) ** 0.5,
        "val/best_loss": statistics.fmean(losses),
        "val/best_step": 0,
        "val/overfits": 0,
        "val/loss_low_noise": statistics.fmean(row[0] for row in live),
        "val/loss_middle_noise": statistics.fmean(row[1] for row in live),
        "val/loss_high_noise": statistics.fmean(row[2] for row in live),
    }
    for number, step in enumerate(STRATA):
        expected[f"val/loss_at_timestep/{step}"] = statistics.fmean(row[number] for row in live)
    assert figures == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert abs(expected["val/improvement"]) > 1e-4


def test_new_adapter_has_exactly_the_loss_of_the_base(make_module: Make, validate: Make) -> None:
    figures = validate(make_module(random=False))
    assert figures["val/loss"] == figures["val/loss_base"]
    assert figures["val/improvement"] == figures["val/improvement_stderr"] == 0


def test_pairing_makes_the_difference_far_surer_than_the_losses(
    make_module: Make, validate: Make
) -> None:
    module = make_module(random=False)
    randomize(module.adapted["unet"], std=0.005)
    figures = validate(module)
    assert figures["val/improvement_stderr"] < figures["val/loss_stderr"] / 10


def test_two_validations_of_the_same_weights_give_the_same_bits(
    make_module: Make, validate: Make, items: list[Item]
) -> None:
    runs = [Validation(seed=SEED, strata=3, every_n_steps=None) for _ in range(3)]
    module = make_module()
    first = validate(module, validation=runs[0], probe=items[4:8])
    torch.rand(7)
    assert validate(module, validation=runs[1], probe=items[4:8]) == first
    assert validate(make_module(), validation=runs[2], probe=items[4:8], num_workers=1) == first
    for run in runs[1:]:
        assert torch.equal(run.history[0].held_out, runs[0].history[0].held_out)
        assert torch.equal(run.history[0].probe, runs[0].history[0].probe)


def test_loss_does_not_depend_on_batch_size_or_workers(make_module: Make, validate: Make) -> None:
    module = make_module()
    one, three = validate(module, batch_size=1), validate(module, batch_size=3)
    assert one["val/loss"] == pytest.approx(three["val/loss"], rel=1e-6)
    assert validate(module, batch_size=3, num_workers=1) == three


def test_probe_changes_no_bit_of_the_loss_on_held_out_images(
    make_module: Make, validate: Make, items: list[Item]
) -> None:
    module = make_module()
    without, with_probe = validate(module), validate(module, probe=items[4:8])
    assert {name: with_probe[name] for name in without} == without
    assert with_probe.keys() - without.keys() == {
        "val/loss_train_probe", "val/gap", "val/gap_stderr", "val/overfits",
    }  # fmt: skip


def test_base_is_measured_once(make_module: Make, validate: Make) -> None:
    module = make_module()
    validation = Validation(seed=SEED, strata=3, every_n_steps=None)
    first = validate(module, validation=validation)
    measured = validation.base
    randomize(module.adapted["unet"], seed=9, std=0.1)
    second = validate(module, validation=validation)
    assert second["val/loss"] != first["val/loss"]
    assert validation.base is measured
    assert second["val/loss_base"] == first["val/loss_base"]


def test_single_image_has_no_standard_error(
    make_module: Make, validate: Make, items: list[Item]
) -> None:
    figures = validate(make_module(), held_out=items[:1])
    assert not [name for name in figures if name.endswith("_stderr")]
    assert figures["val/loss"] > 0


def test_two_strata_have_no_middle_band(make_module: Make, validate: Make) -> None:
    validation = Validation(seed=SEED, strata=2, every_n_steps=None)
    figures = validate(make_module(), validation=validation)
    assert figures["val/loss_low_noise"] == figures["val/loss_at_timestep/250"]
    assert figures["val/loss_high_noise"] == figures["val/loss_at_timestep/750"]
    assert "val/loss_middle_noise" not in figures


class Float32Only(TorchDispatchMode):
    """Refuses float64, as Apple's MPS does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            assert getattr(tensor, "dtype", None) != torch.float64, func
        return result


def test_nothing_on_the_device_is_in_double_precision(
    make_module: Make, make_data: Make, make_trainer: Make, items: list[Item]
) -> None:
    loader = make_data(items[4:], items[:4]).held_out_loader()
    trainer, module, steps = make_trainer(), make_module(), torch.tensor(STRATA)
    module.codec()
    with Float32Only():
        errors = measure(trainer, module, loader, seed=SEED, timesteps=steps)
    assert errors.dtype == torch.float32
    assert errors.shape == (4, 3)


@pytest.mark.slow
def test_validation_changes_neither_training_nor_its_dropout(
    make_module: Make, make_data: Make, make_trainer: Make, items: list[Item]
) -> None:
    results = []
    for every_n_steps in (None, 1):
        module = make_module(dropout=0.3)
        validation = Validation(seed=SEED, strata=3, every_n_steps=every_n_steps)
        trainer = make_trainer(max_steps=3, callbacks=[validation])
        trainer.fit(module, make_data(items[4:], items[:4], probe_items=items[4:8]))
        results.append(module.state_dict())
        assert [entry.step for entry in validation.history] == ([1, 2, 3] if every_n_steps else [3])
        assert all(part.training for part in module.adapted["unet"].modules())
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key

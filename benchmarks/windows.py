"""Gradients of one step of seven images, cut into micro-batches in several ways."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from loralab import demo
from loralab.app.build import build_datamodule, build_family, build_module
from loralab.app.folders import choose_folder
from loralab.app.logs import quiet_libraries
from loralab.app.preflight import Survey, preflight
from loralab.config.parse import parse_config
from loralab.config.records import RunConfig
from loralab.config.store import conf_dir, register
from loralab.training.module import LoRATrainingModule

SIZE = 7
CUTS = [(7, 1), (7, 2), (4, 2), (5, 2), (6, 2), (3, 3), (4, 3), (2, 4), (3, 4)]
"""(micro-batch, accumulation) that see all images in one step; some end in fillers."""
ORDERS = 5


def gradients(folder: Path) -> dict[str, dict[Any, float]]:
    """Return by dtype each cut's relative difference from one batch, and of other orders of it."""
    images = folder / "seven"
    images.mkdir()
    for path in sorted(demo.images_dir("train").glob("*.png"))[:SIZE]:
        for file in (path, path.with_suffix(".txt")):
            shutil.copy(file, images)
    quiet_libraries()
    register()
    config, survey = _prepared(folder, images, SIZE, 1)
    module = build_module(config, survey, build_family(config, survey))
    generator = torch.Generator().manual_seed(0)
    for part in module.adapted.values():
        for name, parameter in part.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.02, generator=generator)
    cuts = {cut: _batches(folder, images, module, *cut) for cut in CUTS}
    (whole,) = cuts[SIZE, 1]
    found: dict[str, dict[Any, float]] = {}
    for dtype in (torch.float32, torch.float64):
        for part in module.adapted.values():
            part.to(dtype)
        truth = _gradient(module, [whole], 1)

        def far(gradient: Tensor, truth: Tensor = truth) -> float:
            return float((gradient - truth).norm() / truth.norm())

        row: dict[Any, float] = {cut: far(_gradient(module, cuts[cut], cut[1])) for cut in CUTS}
        orders = [torch.randperm(SIZE, generator=generator) for _ in range(ORDERS)]
        row["order"] = max(far(_gradient(module, [_reordered(whole, o)], 1)) for o in orders)
        found[str(dtype).removeprefix("torch.")] = row
    return found


def _prepared(folder: Path, images: Path, size: int, accumulation: int) -> tuple[RunConfig, Survey]:
    overrides = [
        f"data.image_dir={images}", "model.allow_demo=true", f"data.batch_size={size}",
        f"trainer.accumulate_grad_batches={accumulation}", "logger=none", "preview=none",
        "demo_quality=0", "data.buckets.enabled=false", f"output_dir={folder}",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = parse_config(compose("train", overrides=overrides))
    return config, preflight(config, choose_folder(config))


def _batches(
    folder: Path, images: Path, module: LoRATrainingModule, size: int, accumulation: int
) -> list[Any]:
    config, survey = _prepared(folder, images, size, accumulation)
    data = build_datamodule(config, survey, module.family)
    data.prepare_data()
    return list(data.train_dataloader())


def _gradient(module: LoRATrainingModule, batches: list[Any], accumulation: int) -> Tensor:
    """Return the gradient of one step, as Lightning adds it up, in float64."""
    module.trainer = L.Trainer(
        accelerator="cpu", accumulate_grad_batches=accumulation, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    assert len(batches) == accumulation, (len(batches), accumulation)
    parameters = [p for part in module.adapted.values() for p in part.parameters()]
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    for number, batch in enumerate(batches):
        (module.training_step(batch, number) / accumulation).backward()
    gradient = torch.cat([p.grad.flatten().double() for p in parameters if p.grad is not None])
    for parameter in parameters:
        parameter.grad = None
    return gradient


def _reordered(batch: Any, order: Tensor) -> Any:
    """Return the same batch with its samples in another order."""
    chosen = dict(batch)
    for name, value in batch.items():
        if isinstance(value, Tensor):
            chosen[name] = value[order]
        elif isinstance(value, list) and len(value) == SIZE:
            chosen[name] = [value[place] for place in order.tolist()]
    return chosen

"""A tiny real base, modules around it, items of real images, and a trainer without trimmings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from loralab.adapters.inject import inject
from loralab.app.logs import quiet_libraries
from loralab.data.augment import Augmentation
from loralab.data.buckets import Bucket
from loralab.data.captions import CaptionPipeline
from loralab.data.crop import fit_nearest
from loralab.data.dataset import Item, make_items
from loralab.data.index import scan_folder
from loralab.data.sources import Source
from loralab.diffusion.objective import Objective
from loralab.diffusion.schedule import NoiseSchedule
from loralab.models.registry import load_family
from loralab.training.datamodule import ImageTextDataModule, LoaderOptions
from loralab.training.module import LoRATrainingModule
from tests.adapters.adapted import lora, randomize
from tests.tiny import make_images, make_tiny_sd1

TARGETS = {"unet": ("to_q", "to_v", "conv1"), "text_encoder": ("q_proj", "out_proj")}
BUCKETS = (Bucket(48, 80), Bucket(64, 64), Bucket(80, 48))


def items_in(folder: Path) -> list[Item]:
    """Return the images of a folder in three buckets."""
    source = Source("images", tuple(scan_folder(folder, key="data.image_dir")))
    return make_items([source], partial(fit_nearest, buckets=BUCKETS))


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_libraries()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD1 folder that no test changes."""
    return make_tiny_sd1(tmp_path_factory.mktemp("training") / "base")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve captioned images of several shapes."""
    folder = tmp_path_factory.mktemp("training") / "images"
    make_images(folder, count=12)
    return folder


@pytest.fixture(scope="session")
def items(images: Path) -> list[Item]:
    """The images in three buckets."""
    return items_in(images)


@pytest.fixture
def make_module(base: Path) -> Callable[..., LoRATrainingModule]:
    """Build a training module with the same adapter every time; `random` moves it off identity."""

    def build(
        *,
        parts: tuple[str, ...] = ("unet", "text_encoder"),
        dropout: float = 0.0,
        random: bool = True,
        optimizer: Callable[..., Any] = torch.optim.SGD,
        rate: float = 1.0,
        **options: Any,
    ) -> LoRATrainingModule:
        family = load_family("sd1", base)
        torch.manual_seed(7)
        for name in parts:
            inject(family.parts[name], lora(*TARGETS[name], dropout=dropout), part=name)
            if random:
                randomize(family.parts[name], std=0.02)
        schedule = NoiseSchedule.from_config(family.schedule_config, prediction_type=None)
        settings: dict[str, Any] = {
            "adapted": parts,
            "make_optimizer": optimizer,
            "lr_multiplier": lambda step: 1.0,
            "learning_rates": dict.fromkeys(parts, rate),
            "seed": 5,
        }
        return LoRATrainingModule(family, Objective(schedule), **(settings | options)).train()

    return build


@pytest.fixture
def make_data(base: Path) -> Callable[..., ImageTextDataModule]:
    """Build a data module, without a latent cache unless one is given."""

    def build(
        items: list[Item],
        held_out: list[Item] | None = None,
        *,
        batch_size: int = 2,
        accumulation: int = 1,
        num_workers: int = 0,
        flip_probability: float = 0.0,
        **options: Any,
    ) -> ImageTextDataModule:
        captions = CaptionPipeline(shuffle_tags=True, caption_dropout=0.2)
        augmentation = Augmentation(flip_probability=flip_probability)
        items, held_out = (
            [
                replace(item, source=replace(
                    item.source, captions=captions, augmentation=augmentation
                ))
                for item in group
            ]
            for group in (items, held_out or [])
        )  # fmt: skip
        settings: dict[str, Any] = {
            "cache": None,
            "load_codec": load_family("sd1", base).load_codec,
            "loading": LoaderOptions(batch_size, accumulation, num_workers),
            "seed": 5,
        }
        return ImageTextDataModule(items, held_out, **(settings | options))

    return build


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., L.Trainer]:
    """Build a trainer on the CPU that does only what it is told."""

    def build(**options: Any) -> L.Trainer:
        settings: dict[str, Any] = {
            "accelerator": "cpu",
            "max_epochs": -1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "limit_val_batches": 0,
            "default_root_dir": str(tmp_path),
        }
        return L.Trainer(**(settings | options))

    return build


def adapter_of(module: LoRATrainingModule) -> dict[str, torch.Tensor]:
    """Return a copy of the adapter's tensors."""
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}

"""What a run keeps in memory does not grow with the number of its previews."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import psutil
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from loralab.data.dataset import Item
from loralab.training.callbacks.preview import Preview
from tests.training.test_callbacks import PREVIEW

Make = Callable[..., Any]
ROUNDS = 20
TOLERANCE = 6 * 2**20  # bytes; the pages that the allocator holds come and go by about 1 MB


class Rounds(L.Callback):
    """Notes the process's resident memory, and its tensors, after every preview."""

    def __init__(self, preview: Preview) -> None:
        self.preview = preview
        self.resident: dict[int, int] = {}
        self.tensors: list[int] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if self.preview.drawn_step == trainer.global_step:
            gc.collect()
            self.tensors.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
            self.resident[len(self.resident) + 1] = psutil.Process().memory_info().rss


@pytest.mark.slow
def test_twenty_previews_take_no_more_memory_than_five(
    make_module: Make, make_data: Make, make_trainer: Make, items: list[Item], tmp_path: Path
) -> None:
    preview = Preview(PREVIEW)
    rounds = Rounds(preview)
    assert PREVIEW.every_n_steps is not None
    trainer = make_trainer(
        max_steps=PREVIEW.every_n_steps * ROUNDS + 1,  # the end is drawn later
        callbacks=[preview, rounds],
        logger=TensorBoardLogger(tmp_path, name="", version="board"),
    )
    trainer.fit(make_module(), make_data(items))
    assert list(rounds.resident) == list(range(1, ROUNDS + 1))
    grown = rounds.resident[ROUNDS] - rounds.resident[5]
    assert len(set(rounds.tensors[4:])) == 1, rounds.tensors
    print(f"grown by {grown / 2**20:.1f} MiB in 15 previews")
    assert grown < TOLERANCE, {n: size // 2**20 for n, size in rounds.resident.items()}

"""The loader's position, its workers, and what it says when an image is lost."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loralab.data.dataset import Item
from loralab.data.sampler import BucketBatchSampler
from loralab.errors import DataError, UserError
from loralab.training.loader import ResumableLoader
from tests.training.conftest import BUCKETS, items_in

Make = Callable[..., Any]


def keys(batches: list[Any]) -> list[list[str]]:
    return [batch["keys"] for batch in batches]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [1, 3])
def test_loader_continues_after_the_batches_it_handed_out(
    make_data: Make, items: list[Item], num_workers: int, taken: int
) -> None:
    whole = list(make_data(items).train_dataloader())
    loader = make_data(items, num_workers=num_workers).train_dataloader()
    batches = iter(loader)
    first = [next(batches) for _ in range(taken)]
    state = loader.state_dict()
    del batches
    assert state == {"epoch": 0, "position": taken}

    resumed = make_data(items, num_workers=num_workers).train_dataloader()
    resumed.load_state_dict(state)
    rest = list(resumed)

    assert keys(first) + keys(rest) == keys(whole)
    assert [b["captions"] for b in [*first, *rest]] == [b["captions"] for b in whole]
    for ours, theirs in zip([*first, *rest], whole, strict=True):
        assert torch.equal(ours["images"], theirs["images"])
    assert resumed.state_dict()["position"] == len(whole)
    assert keys(list(resumed)) == keys(whole), "the next epoch starts at its beginning"


def test_epochs_differ_and_each_shows_every_image_once(make_data: Make, items: list[Item]) -> None:
    loader = make_data(items).train_dataloader()
    seen = []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        seen.append([key for batch in loader for key in batch["keys"]])
    assert sorted(seen[0]) == sorted(seen[1]) == sorted(item.key for item in items)
    assert seen[0] != seen[1]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_image_that_changes_during_the_run_stops_it_with_one_sentence(
    make_data: Make, images: Path, tmp_path: Path, num_workers: int
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    items = items_in(folder)
    shutil.copy(folder / "image_000.png", folder / "image_005.png")

    with pytest.raises(DataError) as caught:
        list(make_data(items, num_workers=num_workers).train_dataloader())

    (problem,) = caught.value.problems
    assert problem.message == (
        f"{folder / 'image_005.png'} has changed since the folder was scanned; start the run again."
    )


class Broken:
    """A data set with a mistake of ours in it."""

    def __getitems__(self, micro_batch: Any) -> Any:
        raise KeyError("a mistake")

    def __len__(self) -> int:
        return 4


def test_crash_in_a_worker_ends_the_loop_with_its_cause() -> None:
    sampler = BucketBatchSampler([BUCKETS[0]] * 4, [1.0] * 4, batch_size=2, accumulation=1, seed=0)
    started = time.monotonic()
    with pytest.raises(KeyError, match="a mistake"):
        list(ResumableLoader(Broken(), sampler, num_workers=1))
    assert time.monotonic() - started < 30


class Killed:
    """A data set whose process the system kills, as it does when memory runs out."""

    def __getitems__(self, micro_batch: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def __len__(self) -> int:
        return 4


def test_worker_killed_by_the_system_ends_the_loop_with_one_sentence() -> None:
    sampler = BucketBatchSampler([BUCKETS[0]] * 4, [1.0] * 4, batch_size=2, accumulation=1, seed=0)
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        list(ResumableLoader(Killed(), sampler, num_workers=1))
    assert time.monotonic() - started < 30
    (problem,) = caught.value.problems
    assert problem.key == "data.num_workers"
    assert problem.message.startswith("data.num_workers is 1, and a loading process was killed")
    assert "lower it, then continue with resume=auto" in problem.message


def test_batches_do_not_depend_on_what_else_is_in_the_set(
    make_data: Make, items: list[Item]
) -> None:
    def samples(chosen: list[Item]) -> dict[str, tuple[str, torch.Tensor]]:
        loader = make_data(chosen, batch_size=1, flip_probability=0.5).train_dataloader()
        return {b["keys"][0]: (b["captions"][0], b["images"]) for b in loader}

    whole, part = samples(items), samples(items[5:])
    for key, (caption, image) in part.items():
        assert whole[key][0] == caption
        assert torch.equal(whole[key][1], image)


def test_duplicate_of_an_image_has_randomness_of_its_own(
    make_data: Make, items: list[Item]
) -> None:
    twin = replace(items[0], repeat=1)
    loader = make_data([items[0], twin], batch_size=1).train_dataloader()
    assert len({batch["keys"][0] for batch in loader}) == 2

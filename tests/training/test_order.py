"""What training sees is a function of seed, epoch and content, however it is brought there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loralab.data.account import Account, Tally
from loralab.data.augment import Augmentation
from loralab.data.captions import CaptionPipeline
from loralab.data.dataset import BucketedDataset, Item
from loralab.data.latent_cache import LatentCache
from loralab.data.sampler import BucketBatchSampler
from loralab.diffusion.noise import draw_noise, sample_generator
from loralab.training.loader import ResumableLoader
from tests.tiny import make_images
from tests.training.conftest import items_in

SEEN = tuple[str, str, str, float]


@pytest.fixture(scope="module")
def treated(items: list[Item]) -> list[Item]:
    """The items with captions that vary and images that are mirrored at times."""
    return vary(items)


def vary(items: list[Item]) -> list[Item]:
    source = replace(
        items[0].source,
        captions=CaptionPipeline(shuffle_tags=True, tag_dropout=0.2, caption_dropout=0.1),
        augmentation=Augmentation(flip_probability=0.5),
    )
    return [replace(item, source=source) for item in items]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, treated: list[Item]) -> LatentCache:
    """Moments of every image both ways round; what they hold does not matter here."""
    kept = LatentCache(tmp_path_factory.mktemp("order"), vae_digest="v")
    for entry in BucketedDataset(treated, cache=kept, seed=0).required():
        bucket = entry.item.bucket
        kept.write(entry.key, torch.zeros(8, bucket.height // 8, bucket.width // 8))
    return kept


def loaders(
    items: list[Item],
    *,
    world_size: int = 1,
    num_workers: int = 0,
    prefetch_factor: int = 2,
    cache: LatentCache | None = None,
    seed: int = 3,
    epoch: int = 0,
    start_method: str = "fork",
) -> Iterator[ResumableLoader]:
    """Yield the loader of every rank."""
    for rank in range(world_size):
        sampler = BucketBatchSampler(
            [item.bucket for item in items],
            [item.record.weight for item in items],
            batch_size=2,
            accumulation=1,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        sampler.set_epoch(epoch)
        loader = ResumableLoader(
            BucketedDataset(items, cache=cache, seed=seed),
            sampler,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
        )
        if num_workers:
            loader.multiprocessing_context = start_method
        yield loader


def sequence(items: list[Item], *, seed: int = 3, **options: Any) -> tuple[list[SEEN], str]:
    """Return (image, caption, cut and flip, noise) in the order of the plan, and the receipt."""
    found: dict[int, list[SEEN]] = {}
    tallies, account = [], Account(items)
    for loader in loaders(items, seed=seed, **options):
        tally = Tally()
        for batch in loader:
            tally.add(batch)
            rows = zip(
                batch["keys"], batch["captions"], batch["cuts"], batch["is_filler"], strict=True
            )
            found[batch["micro_batch"]] = [
                (key, caption, cut, noise_of(seed, batch["epoch"], key))
                for key, caption, cut, is_filler in rows if not is_filler
            ]  # fmt: skip
        tallies.append(tally)
    account.add(tallies)
    rows = itertools.chain.from_iterable(found[number] for number in sorted(found))
    return list(rows), account.receipts[-1].sha256


def noise_of(seed: int, epoch: int, key: str) -> float:
    return float(draw_noise((1, 4, 2, 2), [sample_generator(seed, epoch, key, "noise")]).sum())


@settings(
    deadline=None,
    database=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 50),
    epoch=st.integers(0, 4),
    world_size=st.sampled_from([1, 2, 4]),
    cached=st.booleans(),
    data=st.data(),
)
def test_sequence_and_receipt_do_not_depend_on_ranks_and_cache(
    treated: list[Item],
    cache: LatentCache,
    seed: int,
    epoch: int,
    world_size: int,
    cached: bool,
    data: st.DataObject,
) -> None:
    count = data.draw(st.integers(3, len(treated)))
    chosen = treated[:count]
    options = {"seed": seed, "epoch": epoch}
    expected = sequence(chosen, **options)
    found = sequence(chosen, **options, world_size=world_size, cache=cache if cached else None)
    assert found == expected
    assert len(found[0]) == count


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize(
    ("num_workers", "prefetch_factor", "world_size", "cached"),
    [(1, 1, 1, True), (1, 4, 4, False), (4, 1, 2, False), (4, 4, 1, False), (4, 2, 4, True)],
)
def test_sequence_and_receipt_do_not_depend_on_workers_and_prefetch(
    treated: list[Item],
    cache: LatentCache,
    num_workers: int,
    prefetch_factor: int,
    world_size: int,
    cached: bool,
) -> None:
    found = sequence(
        treated,
        epoch=2,
        num_workers=num_workers,
        prefetch_factor=prefetch_factor,
        world_size=world_size,
        cache=cache if cached else None,
    )
    assert found == sequence(treated, epoch=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@settings(
    deadline=None,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 50),
    epoch=st.integers(0, 4),
    num_workers=st.sampled_from([0, 1, 4]),
    prefetch_factor=st.integers(1, 5),
    world_size=st.sampled_from([1, 2, 4]),
    cached=st.booleans(),
)
def test_sequence_and_receipt_depend_on_seed_and_epoch_alone(
    treated: list[Item], cache: LatentCache, seed: int, epoch: int, cached: bool, **options: int
) -> None:
    found = sequence(treated, seed=seed, epoch=epoch, cache=cache if cached else None, **options)
    assert found == sequence(treated, seed=seed, epoch=epoch)


@pytest.mark.slow
def test_sequence_and_receipt_are_those_of_spawned_workers(
    treated: list[Item], cache: LatentCache
) -> None:
    found = sequence(treated, epoch=1, num_workers=2, start_method="spawn", cache=cache)
    assert found == sequence(treated, epoch=1)


def test_seeds_and_epochs_have_receipts_of_their_own(treated: list[Item]) -> None:
    receipts = {sequence(treated, seed=seed, epoch=epoch)[1] for seed in (0, 1) for epoch in (0, 1)}
    assert len(receipts) == 4


@settings(
    deadline=None,
    database=None,
    max_examples=10,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(place=st.integers(0, 11), seed=st.integers(0, 20), epoch=st.integers(0, 3))
def test_one_more_image_leaves_captions_cuts_and_noise_of_the_others(
    treated: list[Item], place: int, seed: int, epoch: int
) -> None:
    whole, _ = sequence(treated, seed=seed, epoch=epoch)
    without, _ = sequence([*treated[:place], *treated[place + 1 :]], seed=seed, epoch=epoch)
    added = treated[place].key
    assert set(without) == {row for row in whole if row[0] != added}


def test_one_changed_byte_of_a_caption_changes_the_receipt(tmp_path: Path) -> None:
    make_images(tmp_path, count=4)
    before = sequence(vary(items_in(tmp_path)))
    caption = tmp_path / "image_002.txt"
    caption.write_bytes(caption.read_bytes().replace(b"e", b"f", 1))
    after = sequence(vary(items_in(tmp_path)))
    assert before[1] != after[1]
    assert [row[0] for row in before[0]] == [row[0] for row in after[0]]

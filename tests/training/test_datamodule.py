"""The data module: what is encoded, what is cached, what the loaders are made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loralab.data.augment import Variant
from loralab.data.dataset import Item, read_pixels
from loralab.data.latent_cache import LatentCache
from loralab.models.registry import load_family

Make = Callable[..., Any]


@pytest.fixture
def cache(tmp_path: Path) -> LatentCache:
    return LatentCache(tmp_path / "cache", vae_digest="v")


def test_cache_is_filled_once_with_both_flips_and_counted_aloud(
    base: Path, make_data: Make, items: list[Item], cache: LatentCache
) -> None:
    calls: list[tuple[int, int]] = []
    data = make_data(items[:3], items[3:5], cache=cache, flip_probability=0.5)
    data.report = lambda done, total: calls.append((done, total))
    data.prepare_data()
    assert calls == [(done, 8) for done in range(9)]  # three images both ways round, two held out

    codec = load_family("sd1", base).load_codec()
    for variant in (Variant(), Variant(flipped=True)):
        key = cache.key(items[0].record.digest, items[0].plan, variant)
        expected = codec.moments(read_pixels(items[0], variant)[None])[0]
        torch.testing.assert_close(cache.read(key), expected, rtol=1e-4, atol=1e-5)


def test_complete_cache_needs_no_codec(
    make_data: Make, items: list[Item], cache: LatentCache
) -> None:
    make_data(items[:2], cache=cache).prepare_data()

    def refuse() -> Any:
        raise AssertionError("the VAE was loaded")

    data = make_data(items[:2], cache=cache, load_codec=refuse)
    data.prepare_data()
    assert all("moments" in batch for batch in data.train_dataloader())


def test_captions_and_order_are_the_same_with_and_without_the_cache(
    make_data: Make, items: list[Item], cache: LatentCache
) -> None:
    cached = make_data(items, cache=cache, flip_probability=0.5)
    cached.prepare_data()
    plain = make_data(items, flip_probability=0.5)
    pairs = zip(cached.train_dataloader(), plain.train_dataloader(), strict=True)
    for one, other in pairs:
        for key in ("keys", "captions", "epoch", "micro_batch"):
            assert one[key] == other[key]
        assert torch.equal(one["loss_weight"], other["loss_weight"])


def test_training_is_the_same_with_and_without_the_cache(
    make_module: Make,
    make_data: Make,
    make_trainer: Make,
    items: list[Item],
    cache: LatentCache,
) -> None:
    results = []
    for chosen in (cache, None):
        module = make_module()
        trainer = make_trainer(max_steps=2)
        trainer.fit(module, make_data(items, batch_size=1, cache=chosen))
        results.append(module.state_dict())
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-4, atol=1e-6)


def test_no_held_out_images_make_no_validation_loader(make_data: Make, items: list[Item]) -> None:
    assert make_data(items).probe_loader() is None


def test_held_out_images_keep_order_and_captions(make_data: Make, items: list[Item]) -> None:
    data = make_data(items[4:], items[:4])
    first, second = list(data.held_out_loader()), list(data.held_out_loader())
    assert [b["keys"] for b in first] == [b["keys"] for b in second]
    captions = {key: c for b in first for key, c in zip(b["keys"], b["captions"], strict=True)}
    assert captions == {item.key: item.record.captions[0] for item in items[:4]}

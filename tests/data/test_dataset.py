"""Items and data sets on three real files; pixels are compared with Pillow's."""

import random
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from loralab.data.augment import PLAIN, Augmentation, Variant
from loralab.data.batch import check_batch, collate
from loralab.data.buckets import Bucket, make_buckets
from loralab.data.captions import CaptionPipeline
from loralab.data.crop import fit_nearest, plan_crop
from loralab.data.dataset import (
    BucketedDataset,
    ValidationDataset,
    make_items,
    read_pixels,
    sample_random,
)
from loralab.data.images import crop_image, load_image
from loralab.data.latent_cache import LatentCache
from loralab.data.sampler import BucketBatchSampler, MicroBatch
from loralab.data.sources import Source
from loralab.errors import DataError, Problem

BUCKETS = make_buckets(area=64 * 64, step=16, min_side=32, max_side=128)
FIT = partial(fit_nearest, buckets=BUCKETS)
SQUARE = partial(plan_crop, bucket=Bucket(64, 64))
MIRRORED = Variant(flipped=True)


def items_of(records, fit=FIT):
    return make_items([Source("images", tuple(records))], fit)


@pytest.fixture
def items(records):
    return items_of([replace(record, repeats=2) for record in records])


@pytest.fixture
def cache(tmp_path):
    return LatentCache(tmp_path / "latents", vae_digest="vae")


def treated(items, *, flip_probability=0.0, **captions):
    """The same items from a source that does something to captions and pixels."""
    options = {
        "captions": CaptionPipeline(**captions),
        "augmentation": Augmentation(flip_probability=flip_probability),
    }
    return [replace(item, source=replace(item.source, **options)) for item in items]


def dataset(items, cache=None, *, seed=0, **options):
    return BucketedDataset(treated(items, **options), cache=cache, seed=seed)


def visit(data, *indices, epoch=0, number=0):
    return data.__getitems__(MicroBatch(epoch, number, indices, (0.5,) * len(indices)))


def fill(data):
    """Write moments that tell what they are of: the mean colour of the pixels, per channel."""
    for key, item, variant in data.required():
        height, width = item.bucket.height // 8, item.bucket.width // 8
        cells = read_pixels(item, variant)[:2].unflatten(1, (height, 8))
        data.cache.write(key, cells.unflatten(-1, (width, 8)).mean((2, 4)))


def test_items_get_the_nearest_bucket(items):
    sizes = [(item.bucket.height, item.bucket.width) for item in items[::2]]
    assert sizes == [(48, 80), (64, 64), (80, 48)]


def test_repeats_are_numbered(items):
    assert [item.key.split("#")[1] for item in items] == ["0", "1"] * 3


def test_duplicate_files_count_as_repeats_of_the_same_content(records, tmp_path):
    twin = replace(records[0], path=tmp_path / "twin.jpg", repeats=2)
    items = items_of([records[0], records[1], twin])
    digest = records[0].digest
    assert [item.key for item in items] == [
        f"{digest}#0",
        f"{records[1].digest}#0",
        f"{digest}#1",
        f"{digest}#2",
    ]


def test_images_without_a_size_are_named_together(records, problems_of):
    def refuse(height, width):
        raise DataError(Problem("data.buckets", f"is {width} x {height}; too small."))

    first, second = (record.path for record in records[:2])
    assert problems_of(items_of, records[:2], refuse) == [
        f"{first} is 96 x 60; too small.",
        f"{second} is 64 x 64; too small.",
    ]


def test_sources_given_together_number_a_content_through(records):
    one, other = Source("one", tuple(records[:1])), Source("other", tuple(records[:1]))
    items = make_items([one, other], FIT)
    assert [item.key.split("#")[1] for item in items] == ["0", "1"]
    assert [item.source for item in items] == [one, other]


def test_stream_of_a_sample_is_the_documented_one():
    expected = random.Random("7:3:digest#1:variant").random()
    assert sample_random(7, 3, "digest#1", "variant").random() == expected


def test_sample_without_cache_carries_the_cropped_pixels(items):
    (sample,) = visit(dataset(items), 0)
    expected = crop_image(load_image(items[0].record.path), items[0].plan)
    assert sample.moments is None
    assert torch.equal(sample.image, expected)


def test_sample_knows_place_weight_and_sizes(wide_item):
    (sample,) = dataset([wide_item]).__getitems__(MicroBatch(3, 9, (0,), (0.125,)))
    assert (sample.epoch, sample.micro_batch, sample.index, sample.weight) == (3, 9, 0, 0.125)
    assert sample.original_size == (60, 96)
    assert sample.crop_top_left == (0, 19)  # 102 wide after scaling: 38 over, half of it
    assert sample.target_size == (64, 64)


def test_flipped_sample_has_mirrored_pixels_and_crop(records):
    (item,) = items_of(records[:1], lambda *size: replace(SQUARE(*size), left=9))  # of 38
    (plain,) = visit(dataset([item]), 0)
    (mirrored,) = visit(dataset([item], flip_probability=1.0), 0)
    assert torch.equal(mirrored.image, plain.image.flip(-1))
    assert (plain.crop_top_left, mirrored.crop_top_left) == ((0, 9), (0, 29))


def test_flips_happen_at_the_rate_asked_for_and_from_a_stream_of_their_own(records):
    (item,) = items_of(records[:1], lambda *size: replace(SQUARE(*size), left=0))  # mirrored: 38
    data = dataset([item], flip_probability=0.3)
    flips = [visit(data, 0, epoch=epoch)[0].crop_top_left[1] == 38 for epoch in range(200)]
    streams = [sample_random(0, epoch, item.key, "variant") for epoch in range(200)]
    assert flips == [stream.random() < 0.3 for stream in streams]
    assert abs(sum(flips) - 60) < 5 * (200 * 0.3 * 0.7) ** 0.5  # five standard deviations


def test_visits_in_other_epochs_differ(items):
    data = dataset(items, shuffle_tags=True, separator=" ")
    captions = {visit(data, 0, epoch=epoch)[0].caption for epoch in range(20)}
    assert len(captions) == 6  # all orders of "a wide photo"


def test_repeats_of_an_image_differ(items):
    data = dataset(items, shuffle_tags=True, separator=" ")
    pairs = [visit(data, 0, 1, epoch=epoch) for epoch in range(20)]
    assert any(first.caption != second.caption for first, second in pairs)


def test_sample_does_not_depend_on_the_other_files_or_on_its_company(records):
    options = {"flip_probability": 0.5, "shuffle_tags": True, "separator": " "}
    alone = dataset(items_of(records[2:]), **options)
    among = dataset(items_of(records), **options)
    for epoch in range(5):
        (single,) = visit(alone, 0, epoch=epoch)
        several = visit(among, 1, 2, epoch=epoch, number=4)
        assert several[1].caption == single.caption
        assert torch.equal(several[1].image, single.image)


def test_captions_do_not_depend_on_flipping(items):
    options = {"shuffle_tags": True, "separator": " ", "caption_dropout": 0.3}
    plain, flipping = dataset(items, **options), dataset(items, flip_probability=0.5, **options)
    for epoch in range(10):
        captions = [visit(data, *range(6), epoch=epoch) for data in (plain, flipping)]
        assert [s.caption for s in captions[0]] == [s.caption for s in captions[1]]


def test_nothing_is_required_without_a_cache(items):
    assert dataset(items).required() == []


@pytest.mark.parametrize(
    ("probability", "variants"), [(0.0, {PLAIN}), (0.5, {PLAIN, MIRRORED}), (1.0, {MIRRORED})]
)
def test_required_entries_are_the_variants_that_can_occur_once_per_image(
    items, cache, probability, variants
):
    entries = dataset(items, cache, flip_probability=probability).required()
    pairs = {(entry.item.record.path.name, entry.variant) for entry in entries}
    names = ["a.jpg", "b.png", "c.webp"]
    assert pairs == {(name, variant) for name in names for variant in variants}
    assert len({entry.key for entry in entries}) == len(entries)


def test_sample_with_cache_carries_the_moments_of_its_own_variant(items, cache):
    data = dataset(items, cache, flip_probability=0.5)
    fill(data)
    plain = dataset(items, flip_probability=0.5)
    seen = set()
    for epoch in range(8):
        (cached,), (uncached,) = visit(data, 0, epoch=epoch), visit(plain, 0, epoch=epoch)
        cells = uncached.image[:2].unflatten(1, (6, 8)).unflatten(-1, (10, 8)).mean((2, 4))
        torch.testing.assert_close(cached.moments, cells)
        assert cached.image is None
        assert cached.crop_top_left == uncached.crop_top_left
        seen.add(sample_random(0, epoch, cached.key, "variant").random() < 0.5)
    assert seen == {False, True}


def test_captions_are_the_same_with_and_without_cache(items, cache):
    options = {"shuffle_tags": True, "separator": " ", "caption_dropout": 0.5}
    data = dataset(items, cache, **options)
    fill(data)
    for epoch in range(5):
        cached = visit(data, 0, 1, epoch=epoch)
        uncached = visit(dataset(items, **options), 0, 1, epoch=epoch)
        assert [s.caption for s in cached] == [s.caption for s in uncached]


def test_file_added_in_front_leaves_every_entry_with_its_image(records, cache):
    before = dataset(items_of(records[1:]), cache)
    after = dataset(items_of(records), cache)
    fill(before)
    new = cache.missing(entry.key for entry in after.required())
    assert [e.item.record.path.name for e in after.required() if e.key in new] == ["a.jpg"]


def test_file_changed_since_the_scan_is_refused(items, problems_of):
    path = items[0].record.path
    path.write_bytes(items[2].record.path.read_bytes())
    assert problems_of(visit, dataset(items), 0) == [
        f"{path} has changed since the folder was scanned; start the run again."
    ]


def test_validation_sample_is_plain_and_has_its_prefix(items):
    options = {"prefix": "zwx,", "shuffle_tags": True, "tag_dropout": 1.0, "caption_dropout": 1.0}
    data = ValidationDataset(treated(items, flip_probability=1.0, **options), cache=None)
    (sample,) = data.__getitems__([0])
    assert sample.caption == "zwx, a wide photo"
    assert sample.weight == 1.0
    assert torch.equal(sample.image, read_pixels(items[0]))


def test_validation_takes_micro_batches_with_their_weights(items):
    data = ValidationDataset(items, cache=None)
    samples = data.__getitems__(MicroBatch(0, 3, (0, 1), (0.5, 0.0)))
    assert [(s.index, s.weight, s.micro_batch) for s in samples] == [(0, 0.5, 3), (1, 0.0, 3)]


def test_validation_requires_no_mirrored_entries(items, cache):
    data = ValidationDataset(items, cache=cache)
    assert [entry.variant for entry in data.required()] == [PLAIN] * 3


def batches(items, cache, num_workers):
    data = dataset(items, cache, flip_probability=0.5, shuffle_tags=True, separator=" ")
    sampler = BucketBatchSampler(
        [item.bucket for item in items],
        [item.record.weight for item in items],
        batch_size=2,
        accumulation=2,
        seed=0,
    )
    sampler.set_epoch(1)
    return list(
        DataLoader(data, batch_sampler=sampler, collate_fn=collate, num_workers=num_workers)
    )


def test_torch_loader_delivers_the_plan_as_sound_batches(items):
    delivered = batches(items, None, num_workers=0)
    for batch in delivered:
        check_batch(batch)
    assert [batch["micro_batch"] for batch in delivered] == [0, 1, 2, 3]
    assert sum(batch["loss_weight"].sum().item() for batch in delivered) == pytest.approx(2.0)


def test_batches_do_not_depend_on_the_number_of_workers(items):
    for alone, shared in zip(
        batches(items, None, 0), batches(items, None, num_workers=2), strict=True
    ):
        assert alone["captions"] == shared["captions"]
        assert alone["keys"] == shared["keys"]
        assert torch.equal(alone["images"], shared["images"])

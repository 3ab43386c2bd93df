"""Masks of files written here; means over cells are worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from loralab.data.augment import Variant
from loralab.data.batch import collate
from loralab.data.buckets import Bucket
from loralab.data.crop import plan_crop
from loralab.data.dataset import BucketedDataset, make_items
from loralab.data.index import scan_folder
from loralab.data.masks import Masks, mask_problems
from loralab.data.sampler import MicroBatch
from loralab.data.sources import Source


@pytest.fixture
def folder(tmp_path):
    """One image of 64 x 32 (width x height), opaque on its left half, and its caption."""
    root = tmp_path / "images"
    root.mkdir()
    pixels = np.zeros((32, 64, 4), np.uint8)
    pixels[:, :32, 3] = 255
    Image.fromarray(pixels).save(root / "cat.png")
    (root / "cat.txt").write_text("a cat")
    return root


@pytest.fixture
def record(folder):
    (found,) = scan_folder(folder, key="data.image_dir")
    return found


def paint(path, columns):
    """Write a mask 8 high with one grey level for each column."""
    Image.fromarray(np.tile(np.array(columns, np.uint8), (8, 1))).save(path)


def test_alpha_is_the_mask_in_latent_cells(record):
    mask = Masks("alpha").read(record, plan_crop(32, 64, Bucket(32, 64)))
    assert mask.dtype == torch.float32
    assert mask.tolist() == [[[1, 1, 1, 1, 0, 0, 0, 0]] * 4]


def test_image_without_alpha_counts_in_full(record):
    Image.new("RGB", (64, 32)).save(record.path)
    (record,) = scan_folder(record.path.parent, key="data.image_dir")
    assert Masks("alpha").read(record, plan_crop(32, 64, Bucket(32, 64))).unique().tolist() == [1]


def test_mask_is_mirrored_with_its_image(record):
    plan = plan_crop(32, 64, Bucket(32, 64))
    mask = Masks("alpha").read(record, plan, Variant(flipped=True))
    assert mask[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_mask_is_cut_where_its_image_is(record):
    plan = plan_crop(32, 64, Bucket(32, 32))  # the middle half: columns 16 to 48
    assert Masks("alpha").read(record, plan)[0, 0].tolist() == [1, 1, 0, 0]
    left = Masks("alpha").read(record, plan, Variant(crop=(0.5, 0.0)))
    assert left[0, 0].tolist() == [1, 1, 1, 1]


def test_mask_file_may_be_smaller_and_cells_are_means(folder, record):
    paint(folder / "cat.mask.png", [255, 0, 0, 0, 255, 255, 255, 0] * 2)  # a column is 4 px
    mask = Masks("file").read(record, plan_crop(32, 64, Bucket(32, 64)))
    torch.testing.assert_close(mask[0, 0], torch.tensor([0.5, 0, 1, 0.5] * 2), atol=1 / 255, rtol=0)


def test_masks_are_not_taken_for_images(folder, record):
    paint(folder / "cat.mask.png", [255, 0])
    assert [r.path.name for r in scan_folder(folder, key="data.image_dir")] == ["cat.png"]


def test_floor_lifts_black_and_leaves_white(record):
    mask = Masks("alpha", floor=0.2).read(record, plan_crop(32, 64, Bucket(32, 64)))
    torch.testing.assert_close(mask[0, 0, [0, 7]], torch.tensor([1.0, 0.2]))


def test_another_factor_gives_another_number_of_cells(record):
    plan = plan_crop(32, 64, Bucket(32, 64))
    assert Masks("alpha", factor=4).read(record, plan).shape == (1, 8, 16)


def test_masks_may_lie_in_a_folder_of_their_own(record, tmp_path):
    paint(tmp_path / "cat.mask.png", [255] * 8 + [0] * 8)
    assert Masks("file", folder=tmp_path).problem(record) is None
    plan = plan_crop(32, 64, Bucket(32, 64))
    assert Masks("file", folder=tmp_path).read(record, plan)[0, 0, [0, 7]].tolist() == [1, 0]


def test_missing_mask_is_named_with_its_image(folder, record):
    assert str(Masks("file").problem(record)) == (
        f"{folder / 'cat.png'} has no mask {folder / 'cat.mask.png'}; paint one, or set "
        "data.masks=none."
    )


def test_one_mask_of_two_images_is_no_mask_of_either(record, tmp_path):
    paint(tmp_path / "cat.mask.png", [255, 0])
    twin = replace(record, path=tmp_path / "other" / "cat.jpg")
    masks = Masks("file", folder=tmp_path)
    problems = mask_problems([(masks, record), (masks, twin)])
    assert problems.keys() == {record.path, twin.path}
    (problem,) = set(problems.values())
    assert f"would be the mask of {record.path} and {twin.path}" in str(problem)


def test_mask_that_is_damaged_or_of_another_shape_is_found_without_decoding(folder, record):
    paint(folder / "cat.mask.png", [255] * 8)
    assert "cat.mask.png is 8 x 8, but" in str(Masks("file").problem(record))
    (folder / "cat.mask.png").write_bytes(b"no picture")
    assert "cat.mask.png is not a readable" in str(Masks("file").problem(record))


def test_mask_of_another_shape_is_refused(folder, record, problems_of):
    paint(folder / "cat.mask.png", [255] * 8)
    (message,) = problems_of(Masks("file").read, record, plan_crop(32, 64, Bucket(32, 64)))
    assert "cat.mask.png is 8 x 8, but" in message
    assert message.endswith("is 64 x 32; a mask must have the shape of its image.")


def test_digest_changes_with_the_mask(folder, record):
    paint(folder / "cat.mask.png", [255, 0])
    before = Masks("file").digest(record)
    paint(folder / "cat.mask.png", [0, 255])
    assert Masks("file").digest(record) != before


def test_class_images_beside_masked_ones_count_in_full(record, tmp_path):
    fit = lambda height, width: plan_crop(height, width, Bucket(32, 64))  # noqa: E731
    own = Source("own", (record,), masks=Masks("alpha"))
    items = make_items([own, Source("class", (record,), is_prior=True)], fit)
    data = BucketedDataset(items, cache=None, seed=0)
    batch = collate(data.__getitems__(MicroBatch(0, 0, (0, 1), (0.5, 0.5))))
    assert batch["mask"].shape == (2, 1, 4, 8)
    assert batch["mask"].mean((1, 2, 3)).tolist() == [0.5, 1.0]


def test_without_masks_a_batch_has_none(record):
    fit = lambda height, width: plan_crop(height, width, Bucket(32, 64))  # noqa: E731
    data = BucketedDataset(make_items([Source("own", (record,))], fit), cache=None, seed=0)
    assert "mask" not in collate(data.__getitems__(MicroBatch(0, 0, (0,), (1.0,))))

"""Crop geometry; the sizes are those that kohya-ss/sd-scripts resized to, or worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralab.data.buckets import Bucket
from loralab.data.crop import plan_crop


@pytest.mark.parametrize(
    ("width", "height", "bucket", "resized"),
    [
        (700, 400, Bucket(384, 640), (384, 672)),
        (300, 200, Bucket(384, 640), (427, 640)),
        (1920, 1080, Bucket(384, 640), (384, 683)),
        (100, 1000, Bucket(768, 320), (3200, 320)),
        (1200, 1800, Bucket(1216, 832), (1248, 832)),
    ],
)
def test_images_are_scaled_to_the_sizes_of_sd_scripts(width, height, bucket, resized):
    assert plan_crop(height, width, bucket).resized == resized


def test_cut_is_in_the_centre_by_default():
    plan = plan_crop(1800, 1200, Bucket(1216, 832))
    assert (plan.top, plan.left) == (16, 0)


def test_anchor_moves_the_cut_to_the_edges():
    bucket = Bucket(1216, 832)
    assert plan_crop(1800, 1200, bucket, anchor=(0.0, 0.0)).top == 0
    assert plan_crop(1800, 1200, bucket, anchor=(1.0, 1.0)).top == 32


def test_image_of_the_bucket_size_is_neither_scaled_nor_cut():
    plan = plan_crop(512, 640, Bucket(512, 640))
    assert (plan.resized, plan.top, plan.left) == ((512, 640), 0, 0)


def test_corner_of_a_mirrored_sample_is_counted_from_the_other_edge():
    plan = plan_crop(400, 700, Bucket(384, 640), anchor=(0.5, 0.25))  # 672 wide, left 8 of 32
    assert plan.top_left(flipped=False) == (0, 8)
    assert plan.top_left(flipped=True) == (0, 24)


sides = st.integers(1, 5000)


@given(sides, sides, sides, sides, st.floats(0, 1), st.floats(0, 1))
def test_the_cut_lies_inside_and_one_side_fits_exactly(height, width, high, wide, down, right):
    plan = plan_crop(height, width, Bucket(high, wide), anchor=(down, right))
    excess = plan.resized[0] - high, plan.resized[1] - wide
    assert min(excess) == 0
    assert 0 <= plan.top <= excess[0]
    assert 0 <= plan.left <= excess[1]

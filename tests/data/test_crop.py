"""Crop geometry; the sizes are those that kohya-ss/sd-scripts resized to, or worked out by hand."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralab.data.augment import Variant
from loralab.data.buckets import Bucket, make_buckets
from loralab.data.crop import fit_nearest, fit_without_upscale, plan_crop

WIDE = plan_crop(400, 700, Bucket(384, 640))  # 384 x 672: 32 px hang over, 16 on each side


def cut(*, top=0.5, left=0.5, flipped=False):
    return Variant(flipped, crop=(top, left))


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
    # 1000 x 1500 in 832 x 1216 is scaled to 832 x 1248; sd-scripts cuts 16 from the top.
    plan = plan_crop(1500, 1000, Bucket(1216, 832))
    assert (plan.resized, plan.top_left()) == ((1248, 832), (16, 0))


def test_odd_overflow_loses_the_smaller_half_at_the_top_as_in_sd_scripts():
    plan = plan_crop(200, 300, Bucket(384, 640))  # 427 high: 43 hang over
    assert plan.top == 43 // 2


def test_image_of_the_bucket_size_is_neither_scaled_nor_cut():
    plan = plan_crop(512, 640, Bucket(512, 640))
    assert (plan.resized, plan.top, plan.left) == ((512, 640), 0, 0)


def test_variant_moves_the_cut_from_edge_to_edge():
    assert WIDE.top_left(cut(left=0.0)) == (0, 0)
    assert WIDE.top_left(cut(left=1.0)) == (0, 32)


def test_every_place_of_the_cut_is_equally_likely():
    # 33 places for a window of 32 px freedom, as randint(0, 32) gives them.
    places = [WIDE.cut(cut(left=step / 330))[1] for step in range(330)]
    assert places == sorted(list(range(33)) * 10)


def test_corner_of_a_mirrored_sample_is_counted_from_the_other_edge():
    assert WIDE.top_left(cut(left=0.25)) == (0, 8)
    assert WIDE.top_left(cut(left=0.25, flipped=True)) == (0, 24)


def test_box_is_the_cut_in_pixels_of_the_image_itself():
    # 64 of 102 columns of a 96 px wide image, from column 19 on.
    plan = plan_crop(60, 96, Bucket(64, 64))
    assert plan.box(60, 96) == pytest.approx((19 * 96 / 102, 0, 83 * 96 / 102, 60))


@pytest.mark.parametrize(
    ("side", "size", "resized", "bucket"),
    [
        (512, (700, 400), (672, 384), (640, 384)),  # by sd-scripts
        (512, (300, 200), (300, 200), (256, 192)),  # by sd-scripts
        # By hand, with area A and ratio r: sides sqrt(A r) and sqrt(A / r), each floored to 64.
        (768, (1920, 1080), (1024, 576), (1024, 576)),  # 1024 and 576, exactly r
        (768, (1000, 1500), (597, 896), (576, 896)),  # 627 -> 576: 0.692; 941 -> 896: 0.643 of 2/3
        (768, (640, 500), (640, 500), (640, 448)),  # below A: only cut
        (1024, (1000, 1500), (832, 1248), (832, 1216)),  # 836 -> 832: 0.684; 1254 -> 1216: 0.632
        (1024, (1920, 1080), (1365, 768), (1344, 768)),  # 1365 -> 1344: 1.91; 768: 1.75 of 1.78
    ],
)
def test_without_upscale_each_image_has_the_bucket_of_sd_scripts(side, size, resized, bucket):
    plan = fit_without_upscale(size[1], size[0], area=side * side, step=64)
    assert (plan.resized[1], plan.resized[0]) == resized
    assert (plan.bucket.width, plan.bucket.height) == bucket


@pytest.mark.parametrize(
    ("side", "limits", "size", "resized", "bucket"),
    [
        (512, (256, 1024), (300, 200), (640, 427), (640, 384)),
        (768, (256, 1024), (1920, 1080), (1024, 576), (1024, 576)),
        (768, (256, 1024), (300, 200), (960, 640), (896, 640)),  # 1.5 / 1.4 < 1.667 / 1.5
        (1024, (512, 2048), (1920, 1080), (1365, 768), (1344, 768)),
    ],
)
def test_with_upscale_each_image_covers_its_bucket(side, limits, size, resized, bucket):
    buckets = make_buckets(area=side * side, step=64, min_side=limits[0], max_side=limits[1])
    plan = fit_nearest(size[1], size[0], buckets=buckets)
    assert (plan.resized[1], plan.resized[0]) == resized
    assert (plan.bucket.width, plan.bucket.height) == bucket


@pytest.mark.parametrize("size", [(60, 300), (300, 60), (100, 10_000)])
def test_image_thinner_than_a_step_has_no_bucket_without_upscale(problems_of, size):
    fit = partial(fit_without_upscale, area=512 * 512, step=64)
    (message,) = problems_of(fit, size[1], size[0])
    assert message.startswith(f"is {size[0]} x {size[1]}; without enlarging it gives no bucket")


@given(st.integers(64, 4000), st.integers(64, 4000), st.sampled_from([512, 768, 1024]))
def test_nothing_is_enlarged_without_upscale(height, width, side):
    if max(height, width) > 50 * min(height, width):
        return
    plan = fit_without_upscale(height, width, area=side * side, step=64)
    for length, resized, kept in zip(
        (height, width), plan.resized, (plan.bucket.height, plan.bucket.width), strict=True
    ):
        assert kept <= resized <= length
        assert kept % 64 == 0
        assert resized - kept < 64
    assert plan.bucket.height * plan.bucket.width <= side * side * 1.01


sides = st.integers(1, 5000)


@given(sides, sides, sides, sides, st.floats(0, 1), st.floats(0, 1))
def test_the_cut_lies_inside_and_one_side_fits_exactly(height, width, high, wide, down, right):
    plan = plan_crop(height, width, Bucket(high, wide))
    excess = plan.resized[0] - high, plan.resized[1] - wide
    assert min(excess) == 0
    for variant in (cut(top=down, left=right), Variant()):
        top, left = plan.cut(variant)
        assert 0 <= top <= excess[0]
        assert 0 <= left <= excess[1]

"""Bucket lists and assignment; lists and counts are those that kohya-ss/sd-scripts produced."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralab.data.buckets import Bucket, make_buckets, nearest_bucket, parse_size, square_bucket
from loralab.errors import DataError


def sd_buckets(side, min_side, max_side):
    return make_buckets(area=side * side, step=64, min_side=min_side, max_side=max_side)


def test_512_between_320_and_960_gives_the_nine_sizes_of_sd_scripts():
    half = {(320, 704), (320, 768), (384, 640), (448, 576), (512, 512)}
    expected = half | {(width, height) for height, width in half}
    sizes = [(bucket.height, bucket.width) for bucket in sd_buckets(512, 320, 960)]
    assert sizes == sorted(expected)


@pytest.mark.parametrize(
    ("side", "min_side", "max_side", "count"),
    [(512, 256, 1024, 17), (768, 256, 1024, 19), (1024, 512, 2048, 33), (1024, 256, 1024, 25)],
)
def test_number_of_buckets_equals_that_of_sd_scripts(side, min_side, max_side, count):
    assert len(sd_buckets(side, min_side, max_side)) == count


def test_sizes_cut_at_the_largest_side_have_that_side():
    assert all(1024 in (b.height, b.width) for b in sd_buckets(1024, 256, 1024))


def test_small_area_and_step_give_the_sizes_worked_out_by_hand():
    # 4096 // 32 = 128; 4096 // 48 = 85 -> 80; 4096 // 64 = 64; 4096 // 80 = 51 -> 48;
    # 4096 // 96 = 42 -> 32; 4096 // 112 = 36 -> 32
    sizes = {(128, 32), (80, 48), (64, 64), (96, 32), (112, 32)}
    sizes |= {(width, height) for height, width in sizes}
    buckets = make_buckets(area=64 * 64, step=16, min_side=32, max_side=128)
    assert {(bucket.height, bucket.width) for bucket in buckets} == sizes


@given(st.integers(4, 40), st.integers(1, 6), st.integers(7, 40))
def test_every_bucket_keeps_area_step_and_limits(side, low, high):
    step = 8
    area = (side * step) ** 2
    buckets = make_buckets(area=area, step=step, min_side=low * step, max_side=high * step)
    square = square_bucket(area=area, step=step)
    assert list(buckets) == sorted(set(buckets))
    assert {Bucket(b.width, b.height) for b in buckets} == set(buckets)
    for bucket in set(buckets) - {square}:
        assert bucket.height * bucket.width <= area
        for length in (bucket.height, bucket.width):
            assert length % step == 0
            assert low * step <= length <= high * step


def test_square_bucket_is_the_largest_multiple_of_the_step():
    assert square_bucket(area=500 * 500, step=64) == Bucket(448, 448)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (700, 400, Bucket(384, 640)),
        (300, 200, Bucket(384, 640)),
        (1920, 1080, Bucket(384, 640)),
        (100, 1000, Bucket(768, 320)),
        (512, 512, Bucket(512, 512)),
    ],
)
def test_images_get_the_bucket_that_sd_scripts_gives_them(width, height, expected):
    assert nearest_bucket(width, height, sd_buckets(512, 320, 960)) == expected


def test_image_of_exactly_a_bucket_size_gets_that_bucket():
    for bucket in sd_buckets(1024, 512, 2048):
        assert nearest_bucket(bucket.width, bucket.height, sd_buckets(1024, 512, 2048)) == bucket


def test_portrait_and_landscape_are_treated_alike_where_plain_ratio_difference_is_not():
    buckets = (Bucket(2, 2), Bucket(1, 3), Bucket(3, 1))
    # 7:4 is 1.75: 0.560 from 1:1 and 0.539 from 3:1 in logarithms, 0.75 and 1.25 as plain ratios.
    assert nearest_bucket(7, 4, buckets) == Bucket(1, 3)
    assert nearest_bucket(4, 7, buckets) == Bucket(3, 1)


def test_ratio_matches_as_sd_scripts_does():
    # 525 x 1000 lies between 320 x 704 (0.455) and 384 x 640 (0.6): their mean is 0.527, their
    # geometric mean 0.522.
    buckets = sd_buckets(512, 320, 960)
    assert nearest_bucket(525, 1000, buckets, match="ratio") == Bucket(704, 320)
    assert nearest_bucket(525, 1000, buckets, match="log_ratio") == Bucket(640, 384)
    # Lying down, it is between 2.2 and 1.667 either way.
    assert nearest_bucket(1000, 525, buckets, match="ratio") == Bucket(384, 640)


@pytest.mark.parametrize("match", ["ratio", "log_ratio"])
def test_exact_size_wins_over_another_of_the_same_shape(match):
    buckets = (Bucket(256, 512), Bucket(512, 1024))
    assert nearest_bucket(1024, 512, buckets, match=match) == Bucket(512, 1024)
    assert nearest_bucket(900, 450, buckets, match=match) == Bucket(256, 512)


def test_ties_of_ratios_go_by_width_then_height_as_in_sd_scripts():
    buckets = (Bucket(400, 800), Bucket(640, 640))  # 2 and 1; the image has 1.5
    assert nearest_bucket(300, 200, buckets, match="ratio") == Bucket(640, 640)


def test_sizes_are_read_as_width_by_height():
    assert parse_size("832x1216") == Bucket(height=1216, width=832)


def test_ties_go_to_the_first_bucket_in_sorted_order():
    assert nearest_bucket(2, 2, (Bucket(4, 1), Bucket(1, 4))) == Bucket(1, 4)


def test_every_wrong_limit_is_named_with_a_value_that_works(problems_of):
    messages = problems_of(make_buckets, area=32 * 32, step=64, min_side=1030, max_side=1000)
    assert messages == [
        "data.resolution is 32; it must be at least data.buckets.step (64). Use 64 or more.",
        "data.buckets.min_side is 1030; it must be a multiple of data.buckets.step (64). "
        "Use 1024 or 1088.",
        "data.buckets.max_side is 1000; it must be a multiple of data.buckets.step (64). "
        "Use 960 or 1024.",
        "data.buckets.min_side is 1030; it must not exceed data.buckets.max_side (1000). "
        "Lower it to 1000 or less.",
    ]


def test_limit_below_one_step_is_refused():
    with pytest.raises(DataError, match="Use 64"):
        make_buckets(area=512 * 512, step=64, min_side=0, max_side=512)

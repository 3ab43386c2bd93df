"""What may happen to an image; colours are compared with the standard library's colorsys."""

import colorsys
import random
from collections import Counter

import pytest
import torch

from loralab.data.augment import PLAIN, Augmentation, ColorShift, Variant, shift_color

COLORS = [(0.9, 0.2, 0.1), (0.3, 0.8, 0.4), (0.1, 0.3, 0.95), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0)]


def pixels(colors):
    """One row of colours as an image (3, 1, W) in [-1, 1]."""
    return torch.tensor(colors).T[:, None, :] * 2 - 1


def drawn(augmentation, count=3000):
    return [augmentation.draw(random.Random(number)) for number in range(count)]


def test_nothing_happens_by_default():
    assert Augmentation().is_identity
    assert set(drawn(Augmentation(), 50)) == {PLAIN}


def test_flip_mirrors_half_of_the_visits():
    flips = sum(variant.flipped for variant in drawn(Augmentation(["flip"])))
    assert abs(flips - 1500) < 5 * (3000 * 0.25) ** 0.5  # five standard deviations


def test_random_crop_reaches_every_place_and_crop_jitter_the_middle_half():
    for kind, low, high in (("random_crop", 0.0, 1.0), ("crop_jitter", 0.25, 0.75)):
        crops = torch.tensor([variant.crop for variant in drawn(Augmentation([kind]))])
        assert crops.min() >= low
        assert crops.max() <= high
        torch.testing.assert_close(crops.min(), torch.tensor(low), atol=0.01, rtol=0)
        torch.testing.assert_close(crops.max(), torch.tensor(high), atol=0.01, rtol=0)
        torch.testing.assert_close(crops.mean(0), torch.tensor([0.5, 0.5]), atol=0.03, rtol=0)


def test_color_changes_a_third_of_the_visits_half_by_hue_half_by_gamma():
    shifts = [v.color for v in drawn(Augmentation(["color"])) if v.color is not None]
    hues = [shift.hue_degrees for shift in shifts if shift.gamma == 1.0]
    gammas = [shift.gamma for shift in shifts if shift.hue_degrees == 0.0]
    assert abs(len(shifts) - 990) < 5 * (3000 * 0.33 * 0.67) ** 0.5
    assert len(hues) + len(gammas) == len(shifts)
    assert abs(len(hues) - len(gammas)) < 5 * len(shifts) ** 0.5
    assert -16 <= min(hues) < -15  # 8 of OpenCV's 180
    assert 15 < max(hues) <= 16
    assert 0.95 <= min(gammas) < 0.955
    assert 1.045 < max(gammas) <= 1.05


@pytest.mark.parametrize("degrees", [-16.0, -3.0, 7.5, 16.0, 120.0])
def test_hue_turns_as_in_colorsys(degrees):
    expected = []
    for color in COLORS:
        hue, saturation, value = colorsys.rgb_to_hsv(*color)
        expected.append(colorsys.hsv_to_rgb((hue + degrees / 360) % 1, saturation, value))
    found = shift_color(pixels(COLORS), ColorShift(hue_degrees=degrees))
    torch.testing.assert_close(found, pixels(expected), atol=1e-5, rtol=0)


def test_gamma_bends_values_between_0_and_1_and_not_bytes():
    # 0.25 ** 1.05 by hand; on bytes 64 ** 1.05 would be 79 and brighten rather than darken.
    found = shift_color(pixels([(0.0, 0.25, 1.0)]), ColorShift(gamma=1.05))
    torch.testing.assert_close(found, pixels([(0.0, 0.2332580, 1.0)]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("probability", "expected"),
    [
        (0.0, [Variant()]),
        (0.5, [Variant(), Variant(flipped=True)]),
        (1.0, [Variant(flipped=True)]),
    ],
)
def test_flips_alone_are_stored_in_full_whatever_the_count(probability, expected):
    augmentation = Augmentation(flip_probability=probability)
    assert list(augmentation.variants("digest", 7)) == expected


def test_stored_variants_depend_on_seed_image_and_number_alone():
    augmentation = Augmentation(["random_crop"], seed=3)
    four = augmentation.variants("digest", 4)
    assert len(set(four)) == 4
    assert augmentation.variants("digest", 2) == four[:2]
    assert Augmentation(["random_crop"], seed=3).variants("digest", 4) == four
    assert not set(Augmentation(["random_crop"], seed=4).variants("digest", 4)) & set(four)
    assert not set(augmentation.variants("another", 4)) & set(four)


def test_visits_pick_every_stored_variant_and_no_other():
    augmentation = Augmentation(["flip", "random_crop", "color"])
    stored = augmentation.variants("digest", 3)
    picked = Counter(augmentation.pick(random.Random(n), "digest", 3) for n in range(300))
    assert set(picked) == set(stored)
    assert min(picked.values()) > 60


def test_color_does_not_move_the_cut_or_the_flip():
    both, alone = (
        Augmentation(["flip", "random_crop", "color"]),
        Augmentation(["flip", "random_crop"]),
    )
    for one, other in zip(drawn(both, 100), drawn(alone, 100), strict=True):
        assert (one.flipped, one.crop) == (other.flipped, other.crop)


def test_variants_are_told_in_words():
    assert str(PLAIN) == ""
    variant = Variant(True, (0.5, 0.25), ColorShift(gamma=1.02))
    assert str(variant) == "flipped, crop 0.5000 0.2500, hue 0.00 gamma 1.0200"

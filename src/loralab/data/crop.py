"""Where an image is scaled and cut to fill its bucket: geometry only, no pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

from loralab.data.augment import PLAIN, Variant
from loralab.data.buckets import Bucket, nearest_bucket
from loralab.errors import DataError, Problem


@dataclass(frozen=True)
class CropPlan:
    """Scale to ``resized`` (height, width), then cut the bucket at (``top``, ``left``)."""

    resized: tuple[int, int]
    top: int
    left: int
    bucket: Bucket

    def cut(self, variant: Variant = PLAIN) -> tuple[int, int]:
        """Return (top, left) of the cut in the scaled image, before any mirroring."""
        if variant.crop is None:
            return self.top, self.left
        over = self.resized[0] - self.bucket.height, self.resized[1] - self.bucket.width
        top, left = (
            min(most, int((most + 1) * place))  # all of 0 ... most are equally likely
            for most, place in zip(over, variant.crop, strict=True)
        )
        return top, left

    def box(
        self, height: int, width: int, variant: Variant = PLAIN
    ) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of the cut in an image of this size, unscaled."""
        scale_y, scale_x = height / self.resized[0], width / self.resized[1]
        top, left = self.cut(variant)
        return (
            left * scale_x,
            top * scale_y,
            (left + self.bucket.width) * scale_x,
            (top + self.bucket.height) * scale_y,
        )

    def top_left(self, variant: Variant = PLAIN) -> tuple[int, int]:
        """Return where the cut lies in the scaled image, or in its mirror image if flipped."""
        top, left = self.cut(variant)
        return top, self.resized[1] - self.bucket.width - left if variant.flipped else left


# (height, width) of an image as displayed -> its plan.
Fit = Callable[[int, int], CropPlan]


def plan_crop(height: int, width: int, bucket: Bucket) -> CropPlan:
    """Return the plan that just covers ``bucket`` and cuts what hangs over alike on both sides.

    Args:
        height: Height of the image as displayed, in pixels.
        width: Width of the image as displayed, in pixels.
        bucket: The size to fill.
    """
    assert height > 0, height
    assert width > 0, width
    if width * bucket.height > height * bucket.width:  # wider than the bucket: heights match
        resized = bucket.height, _divide_rounded(width * bucket.height, height)
    else:
        resized = _divide_rounded(height * bucket.width, width), bucket.width
    return _centred(resized, bucket)


def fit_nearest(
    height: int, width: int, *, buckets: Sequence[Bucket], match: str = "log_ratio"
) -> CropPlan:
    """Return the plan that fills the bucket of the nearest shape; small images are enlarged."""
    return plan_crop(height, width, nearest_bucket(width, height, buckets, match=match))


def fit_without_upscale(height: int, width: int, *, area: int, step: int) -> CropPlan:
    """Return the plan that never enlarges: each image has a bucket of its own.

    An image above ``area`` is scaled down to about that area, so that one side is a multiple of
    ``step``; a smaller one keeps its size. Both sides are then cut to multiples of ``step``. This
    is ``bucket_no_upscale`` of kohya-ss/sd-scripts (``BucketManager.select_bucket``).

    Raises:
        DataError: If less than one step would be left of a side; the sentence lacks its subject.
    """
    resized = height, width
    if height * width > area:
        resized = _shrunk(height, width, area, step)
    bucket = Bucket(_floored(resized[0], step), _floored(resized[1], step))
    if not bucket.height or not bucket.width:
        sentence = (
            f"is {width} x {height}; without enlarging it gives no bucket of at least {step} px a "
            "side (data.buckets.step). Take it out or set data.buckets.no_upscale=false."
        )
        raise DataError(Problem("data.buckets.no_upscale", sentence))
    return _centred(resized, bucket)


def _shrunk(height: int, width: int, area: int, step: int) -> tuple[int, int]:
    """Return (height, width) near ``area`` with the side rounded that keeps the shape better."""
    ratio = width / height
    near_width = _floored(int(sqrt(area * ratio) + 0.5), step)
    near_height = _floored(int(area / sqrt(area * ratio) + 0.5), step)
    if not near_width or not near_height:  # thinner than one step
        return near_height, near_width
    by_width = int(near_width / ratio + 0.5), near_width
    by_height = near_height, int(near_height * ratio + 0.5)

    def error(size: tuple[int, int]) -> float:
        rows, columns = _floored(size[0], step), _floored(size[1], step)
        return abs(columns / rows - ratio) if rows else float("inf")

    return by_width if error(by_width) < error(by_height) else by_height


def _centred(resized: tuple[int, int], bucket: Bucket) -> CropPlan:
    top, left = (resized[0] - bucket.height) // 2, (resized[1] - bucket.width) // 2
    return CropPlan(resized=resized, top=top, left=left, bucket=bucket)


def _floored(length: int, step: int) -> int:
    return length // step * step


def _divide_rounded(dividend: int, divisor: int) -> int:
    """Divide integers, halves rounded up; exact where a float scale may be off by one."""
    return (2 * dividend + divisor) // (2 * divisor)

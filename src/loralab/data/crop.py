"""Where an image is scaled and cut to fill its bucket: geometry only, no pixels."""

from __future__ import annotations

from dataclasses import dataclass

from loralab.data.buckets import Bucket


@dataclass(frozen=True)
class CropPlan:
    """Scale to ``resized`` (height, width), then cut the bucket at (``top``, ``left``)."""

    resized: tuple[int, int]
    top: int
    left: int
    bucket: Bucket

    def top_left(self, *, flipped: bool) -> tuple[int, int]:
        """Return where the cut lies in the scaled image, or in its mirror image if ``flipped``."""
        left = self.resized[1] - self.bucket.width - self.left if flipped else self.left
        return self.top, left


def plan_crop(
    height: int, width: int, bucket: Bucket, *, anchor: tuple[float, float] = (0.5, 0.5)
) -> CropPlan:
    """Return the plan that just covers ``bucket`` and loses as little of the image as possible.

    Args:
        height: Height of the image as displayed, in pixels.
        width: Width of the image as displayed, in pixels.
        bucket: The size to fill.
        anchor: Which part of the overflow is cut at the (top, left): 0 keeps the top or left edge,
            0.5 the centre, 1 the bottom or right edge.
    """
    assert height > 0, height
    assert width > 0, width
    if width * bucket.height > height * bucket.width:  # wider than the bucket: heights match
        resized = bucket.height, _divide_rounded(width * bucket.height, height)
    else:
        resized = _divide_rounded(height * bucket.width, width), bucket.width
    top = int((resized[0] - bucket.height) * anchor[0])
    left = int((resized[1] - bucket.width) * anchor[1])
    return CropPlan(resized=resized, top=top, left=left, bucket=bucket)


def _divide_rounded(dividend: int, divisor: int) -> int:
    """Divide integers, halves rounded up; exact where a float scale may be off by one."""
    return (2 * dividend + divisor) // (2 * divisor)

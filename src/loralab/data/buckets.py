"""Which image sizes a run trains at, and which of them an image gets.

Geometry of one image inside its bucket lives in ``crop.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import isqrt
from typing import Any

from loralab.errors import DataError, Problem


@dataclass(frozen=True, order=True)
class Bucket:
    """One training size in pixels; every image of a micro-batch has the same one."""

    height: int
    width: int


def make_buckets(*, area: int, step: int, min_side: int, max_side: int) -> tuple[Bucket, ...]:
    """Return the sizes of about ``area`` pixels whose sides are multiples of ``step``, sorted.

    For each width from ``min_side`` to ``max_side`` the height is the largest multiple of ``step``
    that keeps the area, cut at ``max_side``; each pair is used both ways round. The square of that
    area is always among them. kohya-ss/sd-scripts makes the same list.

    Raises:
        DataError: If a limit is not a multiple of ``step``, the limits exclude each other, or the
            area has no room for one step.
    """
    problems = _limit_problems(area, step, min_side, max_side)
    if problems:
        raise DataError(*problems)
    sizes = {square_bucket(area=area, step=step)}
    for width in range(min_side, max_side + 1, step):
        height = min(max_side, area // width // step * step)
        if height >= min_side:
            sizes |= {Bucket(height, width), Bucket(width, height)}
    return tuple(sorted(sizes))


def square_bucket(*, area: int, step: int) -> Bucket:
    """Return the largest square of at most ``area`` pixels with sides a multiple of ``step``."""
    side = isqrt(area) // step * step
    assert side > 0, f"an area of {area} pixels has no room for a step of {step}"
    return Bucket(side, side)


def nearest_bucket(
    width: int, height: int, buckets: Sequence[Bucket], *, match: str = "log_ratio"
) -> Bucket:
    """Return the bucket of exactly this size, else the one whose shape is nearest.

    Args:
        width: Width of the image as displayed, in pixels.
        height: Height of the image as displayed, in pixels.
        buckets: The sizes to choose from.
        match: ``log_ratio`` compares the logarithms of width / height, which treats portrait and
            landscape alike; ``ratio`` compares width / height itself, as kohya-ss/sd-scripts does.
            Ties go to the first in order of height and width, or of width and height as there.
    """
    if Bucket(height, width) in buckets:
        return Bucket(height, width)
    distance, order = MATCHES[match]
    return min(sorted(buckets, key=order), key=partial(distance, Fraction(width, height)))


def parse_size(text: str) -> Bucket:
    """Return the bucket of a size as users write it, ``WIDTHxHEIGHT``."""
    width, height = text.split("x")
    return Bucket(int(height), int(width))


def _log_distance(ratio: Fraction, bucket: Bucket) -> Fraction:  # monotone in it, and exact
    quotient = ratio * bucket.height / bucket.width
    return max(quotient, 1 / quotient)


def _distance(ratio: Fraction, bucket: Bucket) -> Fraction:
    return abs(Fraction(bucket.width, bucket.height) - ratio)


# How two shapes are compared, and the order that decides a tie.
MATCHES: dict[str, tuple[Callable[[Fraction, Bucket], Fraction], Callable[[Bucket], Any]]] = {
    "log_ratio": (_log_distance, lambda bucket: (bucket.height, bucket.width)),
    "ratio": (_distance, lambda bucket: (bucket.width, bucket.height)),
}


def _limit_problems(area: int, step: int, min_side: int, max_side: int) -> list[Problem]:
    problems = []
    if isqrt(area) < step:
        problems.append(
            Problem(
                "data.resolution",
                f"data.resolution is {isqrt(area)}; it must be at least data.buckets.step "
                f"({step}). Use {step} or more.",
            )
        )
    for key, side in (("min_side", min_side), ("max_side", max_side)):
        if side < step or side % step:
            lower, upper = max(step, side // step * step), max(1, -(-side // step)) * step
            choices = f"{lower}" if lower == upper else f"{lower} or {upper}"
            problems.append(
                Problem(
                    f"data.buckets.{key}",
                    f"data.buckets.{key} is {side}; it must be a multiple of data.buckets.step "
                    f"({step}). Use {choices}.",
                )
            )
    if min_side > max_side:
        problems.append(
            Problem(
                "data.buckets.min_side",
                f"data.buckets.min_side is {min_side}; it must not exceed data.buckets.max_side "
                f"({max_side}). Lower it to {max_side} or less.",
            )
        )
    return problems

"""Class images beside the training images: equal numbers in every epoch, each image in its turn.

Balancing follows kohya-ss/sd-scripts, ``DreamBoothDataset``: class images are repeated until there
are as many of them as of training images. Where there are more, sd-scripts never shows the rest;
``rotate`` shows them in other epochs.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from loralab.data.buckets import Bucket


@dataclass(frozen=True)
class Shares:
    """How often each class image appears.

    Attributes:
        always: Appearances of each image in every epoch.
        in_turn: Further appearances of each image, which epochs share out among themselves.
        count: How many of the further appearances one epoch shows.
    """

    always: tuple[int, ...]
    in_turn: tuple[int, ...]
    count: int


def balanced_shares(repeats: Sequence[int], target: int, *, rotate: bool = True) -> Shares:
    """Return how often each class image appears so that an epoch shows ``target`` of them.

    Args:
        repeats: Each image's own repeats, in order.
        target: Number of training samples of an epoch, repeats included.
        rotate: Share the last places out among all images over the epochs; False gives them to
            the first images in every epoch, as sd-scripts does, which may exceed ``target`` by one
            image's repeats less one.
    """
    assert repeats, "no class images"
    assert all(count >= 1 for count in repeats), repeats
    assert target >= 1, target
    if not rotate:
        return Shares(_first_come(repeats, target), (0,) * len(repeats), 0)
    if sum(repeats) > target:
        return Shares((0,) * len(repeats), tuple(repeats), target)
    passes, rest = divmod(target - sum(repeats), len(repeats))
    always = tuple(count + passes for count in repeats)
    return Shares(always, (1 if rest else 0,) * len(repeats), rest)


class Rotation:
    """Items that take turns: every epoch shows the same number of each bucket's.

    The numbers by bucket are fixed, so that all epochs have the same length.
    """

    def __init__(self, members: Sequence[int], bucket_of: Sequence[Bucket], count: int) -> None:
        """Share ``count`` places out among the buckets, by the size of their groups.

        Args:
            members: Positions in the data set of the items that take turns.
            bucket_of: Bucket of every item of the data set.
            count: How many of the members an epoch shows.
        """
        groups: dict[Bucket, list[int]] = defaultdict(list)
        for index in members:
            groups[bucket_of[index]].append(index)
        self.groups = dict(sorted(groups.items()))
        quotas = _quotas([len(group) for group in self.groups.values()], count)
        self.quotas = dict(zip(self.groups, quotas, strict=True))
        self.num_members, self.num_shown = len(members), sum(quotas)

    def resting(self, seed: int, epoch: int) -> frozenset[int]:
        """Return the members that an epoch leaves out; after a round all have been shown."""
        left_out: set[int] = set()
        for bucket, group in self.groups.items():
            order, quota = list(group), self.quotas[bucket]
            random.Random(f"{seed}:{bucket.height}x{bucket.width}:prior").shuffle(order)
            start = epoch * quota
            shown = {order[(start + place) % len(order)] for place in range(quota)}
            left_out.update(index for index in group if index not in shown)
        return frozenset(left_out)


def _first_come(repeats: Sequence[int], target: int) -> tuple[int, ...]:
    shown, total = [0] * len(repeats), 0
    step = list(repeats)
    while total < target:
        for index, count in enumerate(step):
            shown[index] += count
            total += count
            if total >= target:
                break
        step = [1] * len(repeats)
    return tuple(shown)


def _quotas(sizes: Sequence[int], count: int) -> list[int]:
    """Divide ``count`` in proportion to the sizes by largest remainder, one each if that can be."""
    total, least = sum(sizes), 1 if count >= len(sizes) else 0
    assert 0 <= count <= total, (count, total)
    quotas = [max(least, count * size // total) for size in sizes]
    largest_remainder = sorted(range(len(sizes)), key=lambda place: -(count * sizes[place] % total))
    for place in largest_remainder * 2:
        if sum(quotas) < count and quotas[place] < sizes[place]:
            quotas[place] += 1
    while sum(quotas) > count:
        quotas[quotas.index(max(quotas))] -= 1
    return quotas

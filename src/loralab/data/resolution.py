"""Training that begins small: the same plan of epochs, at smaller sizes in early ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loralab.data.buckets import Bucket
from loralab.data.crop import plan_crop

if TYPE_CHECKING:
    from loralab.data.dataset import Item


@dataclass(frozen=True)
class Phase:
    """Epochs trained at another size than the run's own.

    Attributes:
        first_epoch: Its first epoch; it lasts until the next phase begins.
        scale: Sides as a multiple of those of the run's buckets.
        step: Sides stay multiples of this, in px.
    """

    first_epoch: int
    scale: float
    step: int

    def sized(self, item: Item) -> Item:
        """Return the item at this phase's size; items of one bucket stay in one bucket."""
        bucket = Bucket(self._side(item.bucket.height), self._side(item.bucket.width))
        if bucket == item.bucket:
            return item
        return replace(item, plan=plan_crop(item.record.height, item.record.width, bucket))

    def _side(self, length: int) -> int:
        return max(1, round(length * self.scale / self.step)) * self.step


def at_epoch(phases: Sequence[Phase], item: Item, epoch: int) -> Item:
    """Return the item as it is trained in an epoch."""
    begun = [phase for phase in phases if phase.first_epoch <= epoch]
    return begun[-1].sized(item) if begun else item


def all_sizes(phases: Sequence[Phase], items: Sequence[Item]) -> list[Item]:
    """Return the items at every size that they are trained at."""
    return [phase.sized(item) for phase in phases for item in items] if phases else list(items)

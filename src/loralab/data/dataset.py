"""Items and the two data sets: training varies by seed and epoch, validation never."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from torch import Tensor
from torch.utils.data import Dataset

from loralab.data.batch import Sample
from loralab.data.buckets import Bucket, nearest_bucket
from loralab.data.captions import CaptionPipeline
from loralab.data.crop import CropPlan, plan_crop
from loralab.data.images import content_digest, crop_image, decode_image, read_bytes
from loralab.data.index import ImageRecord
from loralab.data.latent_cache import LatentCache
from loralab.data.sampler import MicroBatch
from loralab.errors import DataError, Problem


@dataclass(frozen=True)
class Item:
    """One appearance of an image in an epoch.

    Attributes:
        record: The image.
        repeat: How often the same content came before in the run, as a repeat or a duplicate file.
        bucket: The size that it is trained at.
        plan: How it is brought to that size.
    """

    record: ImageRecord
    repeat: int
    bucket: Bucket
    plan: CropPlan

    @property
    def key(self) -> str:
        """Name this appearance by content: ``digest#repeat``, unique in a run."""
        return f"{self.record.digest}#{self.repeat}"


class CacheEntry(NamedTuple):
    """Moments that a data set will ask its cache for."""

    key: str
    item: Item
    flipped: bool


def make_items(
    records: Sequence[ImageRecord],
    buckets: Sequence[Bucket],
    *,
    anchor: tuple[float, float] = (0.5, 0.5),
) -> list[Item]:
    """Return the items of a run, repeats expanded; keys are unique among records given together."""
    seen: Counter[str] = Counter()
    items = []
    for record in records:
        bucket = nearest_bucket(record.width, record.height, buckets)
        plan = plan_crop(record.height, record.width, bucket, anchor=anchor)
        for _ in range(record.repeats):
            items.append(Item(record, seen[record.digest], bucket, plan))
            seen[record.digest] += 1
    return items


def sample_random(seed: int, epoch: int, key: str, purpose: str) -> random.Random:
    """Return the stream of one sample for one purpose; it depends on nothing else."""
    return random.Random(f"{seed}:{epoch}:{key}:{purpose}")


def read_pixels(item: Item, *, flipped: bool) -> Tensor:
    """Return the item's pixels, shape (3, H, W), float32 in [-1, 1].

    Raises:
        DataError: If the file cannot be decoded or is no longer the one that was scanned.
    """
    path = item.record.path
    data = read_bytes(path)
    if content_digest(data) != item.record.digest:
        sentence = f"{path} has changed since the folder was scanned; start the run again."
        raise DataError(Problem(str(path), sentence))
    return crop_image(decode_image(data, path), item.plan, flipped=flipped)


class BucketedDataset(Dataset[Sample]):
    """The training set: what a sample looks like depends on (seed, epoch, key) alone."""

    def __init__(
        self,
        items: Sequence[Item],
        *,
        captions: CaptionPipeline,
        cache: LatentCache | None,
        seed: int,
        flip_probability: float,
    ) -> None:
        """Keep the parts; without a cache the samples carry images, with one they carry moments."""
        assert 0 <= flip_probability <= 1, flip_probability
        self.items = tuple(items)
        self.captions = captions
        self.cache = cache
        self.seed = seed
        self.flip_probability = flip_probability

    def __len__(self) -> int:
        """Return the number of items, repeats included."""
        return len(self.items)

    def __getitems__(self, micro_batch: MicroBatch) -> list[Sample]:
        """Return the samples of a micro-batch; torch's fetcher passes what the sampler yields."""
        return [
            self._sample(index, weight, micro_batch)
            for index, weight in zip(micro_batch.indices, micro_batch.weights, strict=True)
        ]

    def required(self) -> list[CacheEntry]:
        """Return every entry that the cache must hold, each once, in order of the items."""
        variants = [False] if self.flip_probability < 1 else []
        if self.flip_probability > 0:
            variants.append(True)
        return _entries(self.items, self.cache, variants)

    def _sample(self, index: int, weight: float, place: MicroBatch) -> Sample:
        item, epoch = self.items[index], place.epoch
        flipped = sample_random(self.seed, epoch, item.key, "flip").random() < self.flip_probability
        rng = sample_random(self.seed, epoch, item.key, "caption")
        return Sample(
            index=index,
            caption=self.captions(item.record.caption, rng),
            epoch=epoch,
            micro_batch=place.number,
            weight=weight,
            **_picture(item, self.cache, flipped=flipped),
        )


class ValidationDataset(Dataset[Sample]):
    """The validation set: never mirrored, nothing dropped, captions with their prefix only."""

    def __init__(
        self, items: Sequence[Item], *, captions: CaptionPipeline, cache: LatentCache | None
    ) -> None:
        """Keep the parts."""
        self.items = tuple(items)
        self.captions = captions
        self.cache = cache

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.items)

    def __getitems__(self, batch: MicroBatch | Sequence[int]) -> list[Sample]:
        """Return the samples of a micro-batch, or of plain indices of one bucket, weight 1 each."""
        if not isinstance(batch, MicroBatch):
            batch = MicroBatch(0, 0, tuple(batch), (1.0,) * len(batch))
        return [
            Sample(
                index=index,
                caption=self.captions.fixed(self.items[index].record.caption),
                epoch=batch.epoch,
                micro_batch=batch.number,
                weight=weight,
                **_picture(self.items[index], self.cache, flipped=False),
            )
            for index, weight in zip(batch.indices, batch.weights, strict=True)
        ]

    def required(self) -> list[CacheEntry]:
        """Return every entry that the cache must hold, each once, in order of the items."""
        return _entries(self.items, self.cache, [False])


class _Picture(TypedDict):
    """The fields of a sample that come from the image rather than from the visit."""

    key: str
    original_size: tuple[int, int]
    crop_top_left: tuple[int, int]
    target_size: tuple[int, int]
    moments: Tensor | None
    image: Tensor | None


def _picture(item: Item, cache: LatentCache | None, *, flipped: bool) -> _Picture:
    image = moments = None
    if cache is None:
        image = read_pixels(item, flipped=flipped)
    else:
        moments = cache.read(cache.key(item.record.digest, item.plan, flipped=flipped))
    return {
        "key": item.key,
        "original_size": (item.record.height, item.record.width),
        "crop_top_left": item.plan.top_left(flipped=flipped),
        "target_size": (item.bucket.height, item.bucket.width),
        "moments": moments,
        "image": image,
    }


def _entries(
    items: Sequence[Item], cache: LatentCache | None, variants: Sequence[bool]
) -> list[CacheEntry]:
    if cache is None:
        return []
    entries: dict[str, CacheEntry] = {}
    for item in items:
        for flipped in variants:
            key = cache.key(item.record.digest, item.plan, flipped=flipped)
            entries.setdefault(key, CacheEntry(key, item, flipped))
    return list(entries.values())

"""Items and the two data sets: training varies by seed and epoch, validation never."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypedDict

from torch import Tensor
from torch.utils.data import Dataset

from loralab.data.augment import PLAIN, Variant
from loralab.data.batch import Sample
from loralab.data.buckets import Bucket
from loralab.data.crop import CropPlan, Fit
from loralab.data.images import content_digest, crop_image, decode_image, read_bytes
from loralab.data.index import ImageRecord
from loralab.data.latent_cache import LatentCache
from loralab.data.resolution import Phase, all_sizes, at_epoch
from loralab.data.sampler import MicroBatch
from loralab.data.sources import Source
from loralab.errors import DataError, Problem


@dataclass(frozen=True)
class Item:
    """One appearance of an image in an epoch.

    Attributes:
        record: The image.
        repeat: How often the same content came before in the run, as a repeat or a duplicate file.
        plan: How it is brought to the size that it is trained at.
        source: Where it comes from, and so what is done to its caption and pixels.
    """

    record: ImageRecord
    repeat: int
    plan: CropPlan
    source: Source

    @property
    def key(self) -> str:
        """Name this appearance by content: ``digest#repeat``, unique in a run."""
        return f"{self.record.digest}#{self.repeat}"

    @property
    def bucket(self) -> Bucket:
        """The size that it is trained at."""
        return self.plan.bucket


class CacheEntry(NamedTuple):
    """Moments that a data set will ask its cache for."""

    key: str
    item: Item
    variant: Variant


def make_items(sources: Sequence[Source], fit: Fit) -> list[Item]:
    """Return the items of a run, repeats expanded; keys are unique among sources given together.

    Raises:
        DataError: With every image that ``fit`` has no size for.
    """
    seen: Counter[str] = Counter()
    items: list[Item] = []
    problems: list[Problem] = []
    for source in sources:
        for record in source.records:
            try:
                plan = fit(record.height, record.width)
            except DataError as error:
                path = record.path
                problems += [Problem(str(path), f"{path} {p.message}") for p in error.problems]
                continue
            for _ in range(record.repeats):
                items.append(Item(record, seen[record.digest], plan, source))
                seen[record.digest] += 1
    if problems:
        raise DataError(*problems)
    return items


def sample_random(seed: int, epoch: int, key: str, purpose: str) -> random.Random:
    """Return the stream of one sample for one purpose; it depends on nothing else."""
    return random.Random(f"{seed}:{epoch}:{key}:{purpose}")


def read_pixels(item: Item, variant: Variant = PLAIN) -> Tensor:
    """Return the item's pixels, shape (3, H, W), float32 in [-1, 1].

    Raises:
        DataError: If the file cannot be decoded or is no longer the one that was scanned.
    """
    path = item.record.path
    data = read_bytes(path)
    if content_digest(data) != item.record.digest:
        sentence = f"{path} has changed since the folder was scanned; start the run again."
        raise DataError(Problem(str(path), sentence))
    options = item.source.pixels
    image = decode_image(data, path, background=options.background)
    return crop_image(image, item.plan, variant, resize_filter=options.resize_filter)


class BucketedDataset(Dataset[Sample]):
    """The training set: what a sample looks like depends on (seed, epoch, key) alone."""

    def __init__(
        self,
        items: Sequence[Item],
        *,
        cache: LatentCache | None,
        seed: int,
        num_variants: int = 1,
        skips_bad: bool = False,
        phases: Sequence[Phase] = (),
    ) -> None:
        """Keep the parts; without a cache the samples carry images, with one they carry moments.

        Args:
            items: Training items, repeats expanded.
            cache: Latent cache, or None.
            seed: Seed of the run.
            num_variants: Variants of an image that a cache holds where there is no end of them.
            skips_bad: Let another image of weight 0 stand in for one that cannot be read.
            phases: Sizes of epochs other than the items' own, in order.
        """
        self.items = tuple(items)
        self.phases = tuple(phases)
        self.cache = cache
        self.seed = seed
        self.num_variants = num_variants
        self.skips_bad = skips_bad

    def __len__(self) -> int:
        """Return the number of items, repeats included."""
        return len(self.items)

    def __getitems__(self, micro_batch: MicroBatch) -> list[Sample]:
        """Return the samples of a micro-batch; torch's fetcher passes what the sampler yields."""
        return _samples(self.items, micro_batch, self._sample, skips_bad=self.skips_bad)

    def required(self) -> list[CacheEntry]:
        """Return every entry that the cache must hold, each once, in order of the items."""
        return _entries(all_sizes(self.phases, self.items), self.cache, self.num_variants)

    def _sample(self, index: int, weight: float, visit: MicroBatch, place: int) -> Sample:
        item = at_epoch(self.phases, self.items[index], visit.epoch)
        source, digest = item.source, item.record.digest
        rng = sample_random(self.seed, visit.epoch, item.key, "variant")
        variant = (
            source.augmentation.draw(rng)
            if self.cache is None
            else source.augmentation.pick(rng, digest, self.num_variants)
        )
        rng = sample_random(self.seed, visit.epoch, item.key, "caption")
        return Sample(
            index=index,
            caption=source.captions(item.record.captions, rng, epoch=visit.epoch, step=visit.step),
            epoch=visit.epoch,
            micro_batch=visit.number,
            weight=weight,
            window=(place, visit.window_size),
            **_picture(item, self.cache, variant),
        )


class ValidationDataset(Dataset[Sample]):
    """The validation set: images as they are, captions without anything random.

    No other image stands in for one that cannot be read: a measure of fewer images is another.
    """

    def __init__(self, items: Sequence[Item], *, cache: LatentCache | None) -> None:
        """Keep the parts, as ``BucketedDataset`` does."""
        self.items = tuple(items)
        self.cache = cache

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.items)

    def __getitems__(self, batch: MicroBatch | Sequence[int]) -> list[Sample]:
        """Return the samples of a micro-batch, or of plain indices of one bucket, weight 1 each."""
        if not isinstance(batch, MicroBatch):
            batch = MicroBatch(0, 0, tuple(batch), (1.0,) * len(batch))
        return _samples(self.items, batch, self._sample, skips_bad=False)

    def required(self) -> list[CacheEntry]:
        """Return every entry that the cache must hold, each once, in order of the items."""
        return _entries(self.items, self.cache, None)

    def faults(self) -> dict[int, Problem]:
        """Return why items cannot be shown, by their place; every item is tried."""
        found = {}
        for index in range(len(self.items)):
            try:
                self[index]
            except DataError as error:
                found[index] = error.problems[0]
        return found

    def __getitem__(self, index: int) -> Sample:
        """Return one sample, weight 1."""
        return self._sample(index, 1.0, MicroBatch(0, 0, (index,), (1.0,)), 0)

    def _sample(self, index: int, weight: float, visit: MicroBatch, place: int) -> Sample:
        item = self.items[index]
        return Sample(
            index=index,
            caption=item.source.captions.fixed(item.record.captions),
            epoch=visit.epoch,
            micro_batch=visit.number,
            weight=weight,
            **_picture(item, self.cache, PLAIN),
        )


# (index, share of the window, micro-batch, place in the window) -> the sample
_Make = Callable[[int, float, MicroBatch, int], Sample]


def _samples(
    items: Sequence[Item], visit: MicroBatch, make: _Make, *, skips_bad: bool
) -> list[Sample]:
    """Return the samples of a micro-batch; a stand-in keeps its size where one cannot be made."""
    samples = []
    shares = zip(visit.indices, visit.weights, strict=True)
    for place, (index, weight) in enumerate(shares, visit.first):
        try:
            samples.append(make(index, weight, visit, place))
        except DataError as error:
            if not skips_bad:
                raise
            samples.append(_stand_in(items, index, visit, place, make, error))
    return samples


def _stand_in(
    items: Sequence[Item], index: int, visit: MicroBatch, place: int, make: _Make, error: DataError
) -> Sample:
    """Return the next image of the bucket that can be read, with weight 0.

    Raises:
        DataError: If there is none.
    """
    failed = items[index]
    for other in (*range(index + 1, len(items)), *range(index)):
        if items[other].bucket != failed.bucket or items[other].record == failed.record:
            continue
        try:
            sample = make(other, 0.0, visit, place)
        except DataError:
            continue
        return replace(sample, failure=(failed.key, str(error.problems[0])))
    raise error


class _Picture(TypedDict):
    """The fields of a sample that come from the image rather than from the visit."""

    key: str
    name: str
    original_size: tuple[int, int]
    crop_top_left: tuple[int, int]
    target_size: tuple[int, int]
    variant: Variant
    is_prior: bool
    mask: Tensor | None
    moments: Tensor | None
    image: Tensor | None


def _picture(item: Item, cache: LatentCache | None, variant: Variant) -> _Picture:
    image = moments = None
    masks = item.source.masks
    if cache is None:
        image = read_pixels(item, variant)
    else:
        moments = cache.read(_cache_key(cache, item, variant))
    return {
        "key": item.key,
        "name": str(item.record.path),
        "original_size": (item.record.height, item.record.width),
        "crop_top_left": item.plan.top_left(variant),
        "target_size": (item.bucket.height, item.bucket.width),
        "variant": variant,
        "is_prior": item.source.is_prior,
        "mask": None if masks is None else masks.read(item.record, item.plan, variant),
        "moments": moments,
        "image": image,
    }


def _cache_key(cache: LatentCache, item: Item, variant: Variant) -> str:
    return cache.key(item.record.digest, item.plan, variant, pixels=item.source.pixels)


def _entries(
    items: Sequence[Item], cache: LatentCache | None, num_variants: int | None
) -> list[CacheEntry]:
    """Return the entries of all variants, or with None those of the images as they are."""
    if cache is None:
        return []
    entries: dict[str, CacheEntry] = {}
    for item in items:
        augmentation, digest = item.source.augmentation, item.record.digest
        variants = augmentation.variants(digest, num_variants) if num_variants else (PLAIN,)
        for variant in variants:
            key = _cache_key(cache, item, variant)
            entries.setdefault(key, CacheEntry(key, item, variant))
    return list(entries.values())

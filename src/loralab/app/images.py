"""Sources -> items: the size of every image, and how often class images appear."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loralab.app.captions import with_tag_options
from loralab.app.sources import Sources
from loralab.config.choices import FilterAction, OnBadImage
from loralab.config.records import RunConfig
from loralab.config.source_records import caption_options, given_sources
from loralab.data.crop import Fit
from loralab.data.dataset import Item, make_items
from loralab.data.index import ImageRecord
from loralab.data.limits import SizeLimits
from loralab.data.prior import Rotation, Shares, balanced_shares
from loralab.data.sources import Source
from loralab.errors import ConfigError, DataError, Problem


@dataclass(frozen=True)
class Images:
    """The items of a run.

    Attributes:
        training: Training items, then class images; repeats expanded.
        held_out: What validation measures.
        rotation: Class images that take turns from epoch to epoch.
        skipped: Why images were left out; the key is their file.
        odd: What is said about images that stay although the filter names them.
    """

    training: tuple[Item, ...]
    held_out: tuple[Item, ...]
    rotation: Rotation | None
    skipped: tuple[Problem, ...] = ()
    odd: tuple[Problem, ...] = ()

    @property
    def digest(self) -> str:
        """Name the whole: it changes with any image, caption or mask."""
        digest = hashlib.sha256()
        for group in (self.training, self.held_out):
            for line in sorted("\0".join(_facts_trained_on(item)) for item in group):
                digest.update(line.encode())
            digest.update(b"\1")
        return digest.hexdigest()

    @property
    def fingerprints(self) -> dict[str, str]:
        """Name each image by its folder and file: what changes with its pixels, caption or mask."""
        lines: dict[str, list[str]] = {}
        for item in (*self.training, *self.held_out):
            name = "/".join(item.record.path.parts[-2:])
            lines.setdefault(name, []).append("\0".join(_facts_trained_on(item)))
        return {
            name: hashlib.sha256("\1".join(sorted(own)).encode()).hexdigest()[:16]
            for name, own in sorted(lines.items())
        }

    def count(self, *, is_prior: bool) -> int:
        """Return how many training items, or class images, one epoch shows."""
        return count_shown(self.training, self.rotation, is_prior=is_prior)


def _facts_trained_on(item: Item) -> list[str]:
    masks = item.source.masks
    mask = [] if masks is None else [masks.digest(item.record)]
    return [item.key, *item.record.captions, *mask]


def size_images(config: RunConfig, sources: Sources, fit: Fit) -> Images:
    """Give every image its size, and class images their number.

    Raises:
        DataError: With every image that has no size, or that the filter refuses.
        ConfigError: If nothing is left to train on.
    """
    sieve = _Sieve(config, fit)
    given = given_sources(config.data).values()
    training = [
        with_tag_options(sieve(source), caption_options(options, config.data))
        for source, options in zip(sources.training, given, strict=True)
    ]
    prior = sieve(sources.prior) if sources.prior is not None else None
    held_out = [sieve(source) for source in sources.held_out]
    if sieve.problems:
        raise DataError(*sieve.problems)
    items = make_items(training, fit)
    if not items:
        raise ConfigError(_nothing_fits([*sources.skipped, *sieve.skipped]))
    rotation = None
    if prior is not None and prior.records:
        shares = balanced_shares(
            [record.repeats for record in prior.records],
            len(items),
            rotate=config.data.prior.rotate,
        )
        prior, idle = _appearing(prior, shares)
        start, items = len(items), make_items([*training, prior], fit)
        rotation = _rotation(items, start, shares)
        sieve.skipped += idle
    return Images(
        training=tuple(items),
        held_out=tuple(make_items(held_out, fit)),
        rotation=rotation,
        skipped=(*sources.skipped, *sieve.skipped),
        odd=tuple(sieve.odd),
    )


def count_shown(items: Sequence[Item], rotation: Rotation | None, *, is_prior: bool) -> int:
    """Return how many training items, or class images, one epoch shows."""
    shown = sum(item.source.is_prior == is_prior for item in items)
    if is_prior and rotation is not None:
        shown += rotation.num_shown - rotation.num_members
    return shown


class _Sieve:
    """Leaves images of a usable size in a source; what becomes of others is up to the options."""

    def __init__(self, config: RunConfig, fit: Fit) -> None:
        limits = config.data.image_filter
        self.fit = fit
        self.step = config.data.buckets.step
        self.limits = SizeLimits(
            min_side=limits.min_side,
            max_side=limits.max_side,
            min_area=limits.min_area,
            max_upscale=limits.max_upscale,
        )
        self.problems: list[Problem] = []
        self.skipped: list[Problem] = []
        self.odd: list[Problem] = []
        skips = config.data.on_bad_image is OnBadImage.skip
        self._misfits = self.skipped if skips else self.problems
        self._filtered = {
            FilterAction.error: self.problems,
            FilterAction.skip: self.skipped,
            FilterAction.warn: self.odd,
        }[limits.action]

    def __call__(self, source: Source) -> Source:
        return replace(source, records=tuple(filter(self._keep, source.records)))

    def _keep(self, record: ImageRecord) -> bool:
        path, size = record.path, (record.height, record.width)
        if min(size) < self.step:
            says = (
                f"is {record.width} x {record.height} px; a side must be at least "
                f"data.buckets.step ({self.step}). Enlarge it or take it out."
            )
            self._misfits.append(Problem(str(path), f"{path} {says}"))
            return False
        try:
            plan = self.fit(*size)
        except DataError as error:
            self._misfits += [Problem(str(path), f"{path} {p.message}") for p in error.problems]
            return False
        if (excess := self.limits.broken_by(*size, plan)) is None:
            return True
        self._filtered.append(Problem(str(path), f"{path} {excess}"))
        return self._filtered is self.odd


def _appearing(prior: Source, shares: Shares) -> tuple[Source, list[Problem]]:
    """Return class images with as many repeats as an epoch may have, and why others have none."""
    appearances = [a + b for a, b in zip(shares.always, shares.in_turn, strict=True)]
    pairs = list(zip(prior.records, appearances, strict=True))
    idle = [
        Problem(
            str(record.path),
            f"{record.path} has no place in an epoch: there are enough class images before it, "
            "and data.prior.rotate is false.",
        )
        for record, count in pairs
        if not count
    ]
    records = tuple(replace(record, repeats=count) for record, count in pairs if count)
    return replace(prior, records=records), idle


def _rotation(items: Sequence[Item], start: int, shares: Shares) -> Rotation | None:
    """Return the turns of the class images, which are the items from ``start`` on."""
    if not shares.count:
        return None
    members: list[int] = []
    index = start
    for always, in_turn in zip(shares.always, shares.in_turn, strict=True):
        members += range(index + always, index + always + in_turn)
        index += always + in_turn
    buckets = [item.bucket for item in items]
    count = shares.count
    if not any(shares.always):  # a bucket without a place would never be shown
        count = max(count, len({buckets[member] for member in members}))
    return Rotation(members, buckets, count)


def _nothing_fits(skipped: Sequence[Problem]) -> Problem:
    sentence = f"No image is left to train on; the first was left out because {skipped[0]}"
    return Problem("data.on_bad_image", sentence)

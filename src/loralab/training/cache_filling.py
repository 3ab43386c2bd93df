"""Images -> latent cache, in batches of one bucket, decoded while the batch before is encoded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from loralab.data.claims import Claims
from loralab.data.dataset import CacheEntry, read_pixels
from loralab.data.latent_cache import LatentCache
from loralab.errors import DataError
from loralab.models.codec import LatentCodec

PIXELS_A_BATCH = 2 * 512 * 512  # two images of 512 px, one of 1024: fits where training fits
LARGEST_BATCH = 16


def fill_cache(
    cache: LatentCache,
    entries: Iterable[CacheEntry],
    load_codec: Callable[[], LatentCodec],
    *,
    num_workers: int = 0,
    skips_bad: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Encode and keep what the cache lacks; what is kept survives whatever stops the rest.

    Processes that fill one cache at once share the work, and none encodes what another does.

    Args:
        cache: The cache.
        entries: Everything that it must hold; entries of one key count once.
        load_codec: Loads the VAE, onto its device; called only when something is missing.
        num_workers: Threads that decode ahead; there is always one.
        skips_bad: Leave images out that cannot be read or encoded; the cache keeps the reasons, and
            tells whoever asks for them.
        report: Called with the number of entries done and their total.

    Raises:
        DataError: If an image cannot be read or encoded, or the cache cannot be written.
    """
    unique = {entry.key: entry for entry in entries}
    todo = [unique[key] for key in cache.missing(unique)]
    total = len(todo)
    report(0, total)
    if not todo:
        return
    codec, done = load_codec(), 0
    with Claims(cache.root) as claims:
        while todo:
            elsewhere: list[CacheEntry] = []
            batches = _claimed(cut_batches(todo), cache, claims, elsewhere)
            for decoded in _decoded(batches, num_workers, cache if skips_bad else None):
                _encode(decoded, cache, codec, skips_bad)
                for entry, _ in decoded:
                    claims.release(entry.key)
                    done += 1
                    report(done, total)
            if elsewhere and not claims.wait(elsewhere[0].key):
                claims = Claims(None)  # the other process is stuck: do it all
            todo = elsewhere
    if done < total:  # the rest was encoded elsewhere
        report(total, total)


def _claimed(
    batches: Iterable[list[CacheEntry]],
    cache: LatentCache,
    claims: Claims,
    elsewhere: list[CacheEntry],
) -> Iterator[list[CacheEntry]]:
    """Yield of each batch what is ours to do; what another process is at goes to ``elsewhere``."""
    for batch in batches:
        taken = {entry.key: claims.take(entry.key) for entry in batch}
        elsewhere += [entry for entry in batch if not taken[entry.key]]
        lacking = set(cache.missing(key for key, is_ours in taken.items() if is_ours))
        for key, is_ours in taken.items():
            if is_ours and key not in lacking:  # another process was quicker
                claims.release(key)
        if lacking:
            yield [entry for entry in batch if entry.key in lacking]


def _encode(
    decoded: Sequence[tuple[CacheEntry, Tensor | None]],
    cache: LatentCache,
    codec: LatentCodec,
    skips_bad: bool,
) -> None:
    """Encode a batch of one bucket, bad images left out, and keep the moments."""
    batch = [entry for entry, pixels in decoded if pixels is not None]
    pixels = [pixels for _, pixels in decoded if pixels is not None]
    if not batch:
        return
    images = _padded(pixels, batch_size(batch[0])).to(next(codec.parameters()).device)
    with torch.inference_mode():
        moments = codec.moments(images).cpu()
    for entry, own in zip(batch, moments[: len(batch)], strict=True):
        try:
            cache.write(entry.key, own, source=entry.item.record.path)
        except DataError as error:
            if own.isfinite().all() or not skips_bad:
                raise
            cache.faults[entry.key] = error.problems[0]


def batch_size(entry: CacheEntry) -> int:
    """Return how many images of this one's bucket are encoded together."""
    bucket = entry.item.bucket
    return min(LARGEST_BATCH, max(1, PIXELS_A_BATCH // (bucket.height * bucket.width)))


def cut_batches(entries: Sequence[CacheEntry]) -> list[list[CacheEntry]]:
    """Return the entries in batches of one bucket, in order; the last of a bucket may be short."""
    groups: dict[object, list[CacheEntry]] = defaultdict(list)
    for entry in entries:
        groups[entry.item.bucket].append(entry)
    return [
        group[start : start + batch_size(group[0])]
        for group in groups.values()
        for start in range(0, len(group), batch_size(group[0]))
    ]


def _decoded(
    batches: Iterator[list[CacheEntry]], num_workers: int, told: LatentCache | None
) -> Iterator[list[tuple[CacheEntry, Tensor | None]]]:
    """Yield each batch with its pixels, None for a bad image, the next under way in threads."""
    read = partial(_pixels, told=told)
    with ThreadPoolExecutor(max(1, num_workers)) as pool:  # Pillow lets other threads run
        started = ([(entry, pool.submit(read, entry)) for entry in batch] for batch in batches)
        try:
            now = next(started, None)
            while now is not None:
                ahead = next(started, None)
                yield [(entry, own.result()) for entry, own in now]
                now = ahead
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _pixels(entry: CacheEntry, *, told: LatentCache | None) -> Tensor | None:
    """Return an image's pixels; None for a bad one, whose fault the cache is told."""
    try:
        return read_pixels(entry.item, entry.variant)
    except DataError as error:
        if told is None:
            raise
        told.faults[entry.key] = error.problems[0]
        return None


def _padded(pixels: Sequence[Tensor], size: int) -> Tensor:
    """Return a full batch (size, 3, H, W), filled up with its last image.

    The last bits of a convolution depend on the size of the batch. With every batch of a bucket
    alike, moments depend on the image alone and not on what else was missing.
    """
    return torch.stack([*pixels, *[pixels[-1]] * (size - len(pixels))])

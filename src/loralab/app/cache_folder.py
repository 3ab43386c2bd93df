"""What `loralab cache` prints and does: a latent cache in figures, and making room in it."""

from __future__ import annotations

import time
from pathlib import Path

from loralab.data.cache_folder import removable, remove, summarize


def show_cache(folder: Path) -> None:
    """Print what a latent cache holds.

    Raises:
        DataError: If the folder is no latent cache.
    """
    summary = summarize(folder)
    print(f"{folder} holds {summary.num_files:,} latents, {_size(summary.num_bytes)}.")
    for bucket, count in summary.by_bucket.items():
        print(f"  {bucket:>11}  {count:,}")
    if summary.oldest is not None:
        print(f"Longest unused: {(time.time() - summary.oldest) / 86400:.0f} days.")
    if summary.num_unfinished:
        print(f"Files that killed runs left unfinished: {summary.num_unfinished}.")


def clean_cache(
    folder: Path, *, days: float | None, size_gb: float | None, everything: bool, dry_run: bool
) -> None:
    """Remove what may go from a latent cache, and print what that frees.

    Args:
        folder: The cache.
        days: Also remove what was not used for so long.
        size_gb: Also remove what was used longest ago, down to this size.
        everything: Remove all that a cache has written.
        dry_run: Only print.

    Raises:
        DataError: If the folder is no latent cache.
    """
    removals = removable(
        folder,
        days=days,
        max_bytes=None if size_gb is None else int(size_gb * 1e9),
        everything=everything,
    )
    if not dry_run:
        remove(folder, removals)
    for reason in dict.fromkeys(removal.reason for removal in removals):
        sizes = [removal.size for removal in removals if removal.reason == reason]
        print(f"  {reason}: {len(sizes):,} files, {_size(sum(sizes))}")
    total = sum(removal.size for removal in removals)
    print(f"{'Would free' if dry_run else 'Freed'} {_size(total)} in {folder}.")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.2f} MB"

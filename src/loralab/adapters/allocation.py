"""Memory that goes back to the system when it is freed."""

from __future__ import annotations

import ctypes

_MMAP_THRESHOLD, _BYTES = -3, 128 * 1024  # M_MMAP_THRESHOLD of glibc's malloc.h, and its default


def return_freed_blocks() -> None:
    """Let glibc give every large block back; other C libraries do so or are left alone.

    By default glibc raises the threshold to the size of whatever was freed, up to 32 MiB, and then
    keeps such blocks in a heap. Tensors of many sizes, one after another, leave gaps in it: merging
    two files of SD 1.5's size took 120 MiB more than was ever in use.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # TypeError: Windows has no such handle
        return
    mallopt(_MMAP_THRESHOLD, _BYTES)

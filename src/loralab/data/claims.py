"""Who encodes what while several processes fill one latent cache.

A claim is a lock on one byte of a file, at a place that the key decides. The system lets go of it
when the process ends, however it ends, so a killed one leaves no claim behind.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import TracebackType

if sys.platform != "win32":
    import fcntl

LOCK_FILE = "filling.lock"
PATIENCE = 300.0  # seconds; then the holder counts as stuck
_PAUSE = 0.02  # seconds


class Claims:
    """The claims of this process; to be used as a context, whose end gives all of them back.

    Where files cannot be locked (Windows, some network folders) every claim is granted: processes
    may then encode an image twice, which costs time and does no harm.
    """

    def __init__(self, root: Path | None) -> None:
        """Keep the folder of the cache; None, for one in memory, grants everything."""
        self.root = root
        self._descriptor: int | None = None

    def __enter__(self) -> Claims:
        """Open the file, if there can be one."""
        if self.root is not None and sys.platform != "win32":
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self.root / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError:  # the first write tells what is wrong with the folder
                self._descriptor = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give everything back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def take(self, key: str) -> bool:
        """Claim a key; False if another process holds it."""
        if self._descriptor is None or sys.platform == "win32":
            return True
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(key))
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # no locks on this file system
            return True
        return True

    def release(self, key: str) -> None:
        """Give a key back."""
        if self._descriptor is not None and sys.platform != "win32":
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _place(key))
            except OSError:  # nor was it locked
                return

    def wait(self, key: str, seconds: float = PATIENCE) -> bool:
        """Wait until nobody else holds a key; False if that takes longer than ``seconds``."""
        end = time.monotonic() + seconds
        while not self.take(key):
            if time.monotonic() > end:
                return False
            time.sleep(_PAUSE)
        self.release(key)
        return True


def _place(key: str) -> int:
    """Return the byte of a key, which starts with hex characters; files may seem so large."""
    return int(key[:15], 16)

"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a place to write to, which takes the path's place when the block ends well.

    Its folder is made. After a failure nothing is left of it, and an older file is as it was.

    Raises:
        OSError: The folder is full or not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())  # on the disk before it has its name: power cuts happen
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

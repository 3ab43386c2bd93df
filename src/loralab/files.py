"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from loralab.errors import Problem, UserError


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
        put_in_place(part, path)
    finally:
        part.unlink(missing_ok=True)


def put_in_place(part: Path, path: Path) -> None:
    """Give a written file its name; it is on the disk before, since power cuts happen."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def storage_problem(path: Path, error: OSError, *, key: str = "output_dir") -> Problem:
    """Say that a folder is full or not writable."""
    return Problem(
        key,
        f"{key}: {path} cannot be written ({error.strerror or error}); free some space, mend "
        f"the folder's permissions or set {key} to another folder.",
    )


def write_text(
    path: Path, text: str, *, problem: Callable[[Path, OSError], Problem] = storage_problem
) -> None:
    """Write a small text file as a whole or not at all.

    Raises:
        UserError: The folder is full or not writable, in the words of ``problem``.
    """
    try:
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(problem(path, error)) from error

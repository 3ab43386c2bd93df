"""Small files that callbacks leave in the run folder, as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

from loralab.errors import Problem, UserError
from loralab.files import replacing


def write_text(path: Path, text: str) -> None:
    """Write a text file.

    Raises:
        UserError: The folder is full or not writable.
    """
    try:
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> UserError:
    """Return the error that says why a file of a run under way is not there."""
    return UserError(
        Problem(
            "output_dir",
            f"{path} could not be written ({error.strerror or error}); free some space or "
            "mend the folder's permissions, then continue with resume=auto.",
        )
    )

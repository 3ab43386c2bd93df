"""Small files that callbacks leave in the run folder, as a whole or not at all."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from loralab import files
from loralab.errors import Problem


def unwritable(path: Path, error: OSError) -> Problem:
    """Say why a file of a run under way is not there."""
    return Problem(
        "output_dir",
        f"{path} could not be written ({error.strerror or error}); free some space or "
        "mend the folder's permissions, then continue with resume=auto.",
    )


write_text = partial(files.write_text, problem=unwritable)

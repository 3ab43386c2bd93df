"""Checkpoints that torch pickled, read without running anything that is in them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor


def read_pickle(path: Path, *, device: str, report: Callable[[str], None]) -> dict[str, Tensor]:
    """Return the tensors of a `.ckpt` or `.pt` file by name; empty, with a report, if unreadable.

    Args:
        device: ``meta`` reads names and shapes alone; on the CPU the tensors stay on the disk until
            they are used.
        report: Takes the sentence about a file that cannot be read.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        code = f" ({name[1]})" if name else ""
        report(
            f"{path} is a pickle with more than weights in it{code}, which is never run; convert "
            "it to safetensors with a tool you trust."
        )
        return {}
    except (RuntimeError, EOFError, ValueError, OSError, LookupError, AssertionError) as error:
        reason = str(error).split("\n")[0].split(". ")[0] or type(error).__name__
        report(f"{path} cannot be read as a torch checkpoint ({reason}); download it again.")
        return {}
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        report(f"{path} holds no table of weights; give a checkpoint of a whole model.")
        return {}
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _is_zip(path: Path) -> bool:
    """Tell whether torch can map the file; files from before 2020 have another form."""
    with path.open("rb") as stream:
        return stream.read(2) == b"PK"

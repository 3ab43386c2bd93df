"""The adapter file that a tool writes: checked before the work, written after it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from loralab.adapters.container import SUFFIXES
from loralab.adapters.layouts import Adapter
from loralab.adapters.names import SD1_PREFIXES, SDXL_PREFIXES
from loralab.adapters.stream import AdapterStream
from loralab.errors import AdapterError, Problem

DTYPES = {
    "fp32": torch.float32, "float": torch.float32, "32": torch.float32, "fp16": torch.float16,
    "16": torch.float16, "bf16": torch.bfloat16,
}  # fmt: skip
LAYOUTS = {"kohya": "kohya", "lycoris": "kohya", "diffusers": "diffusers"}
_SEVERAL = "Dynamic"  # sd-scripts' word for ranks or alphas that differ


@dataclass(frozen=True)
class Target:
    """Where an adapter goes, in which naming and numbers.

    Attributes:
        layout: ``kohya`` or ``diffusers``.
        dtype: Of all tensors; None is that of the input.
        overwrite: Files of this name may be replaced.
    """

    path: Path
    layout: str
    dtype: torch.dtype | None
    overwrite: bool = False

    @classmethod
    def of(
        cls, path: Path, *, to: str = "kohya", precision: str | None = None, overwrite: bool = False
    ) -> Target:
        """Check what can be checked before the work.

        Args:
            to: kohya, lycoris or diffusers.
            precision: fp32, fp16 or bf16; float, 32 and 16 are understood.
            overwrite: A file of this name may be replaced.

        Raises:
            AdapterError: The name or one of the words is not allowed; all problems.
        """
        problems = []
        if path.suffix not in SUFFIXES:
            text = f"{path} ends in {path.suffix or 'nothing'}; it must be {' or '.join(SUFFIXES)}."
            problems.append(Problem(str(path), text))
        problems += taken_problems(path, overwrite=overwrite)
        for option, word, allowed in (("--to", to, LAYOUTS), ("--precision", precision, DTYPES)):
            if word is not None and word not in allowed:
                text = f"{option} is {word}; it must be one of {', '.join(allowed)}."
                problems.append(Problem(option, text))
        if problems:
            raise AdapterError(*problems)
        dtype = None if precision is None else DTYPES[precision]
        return cls(path, LAYOUTS[to], dtype, overwrite)

    def taken_problems(self, path: Path) -> list[Problem]:
        """Return a problem when a file that goes with this one is there and may not be replaced."""
        return taken_problems(path, overwrite=self.overwrite)

    def stream(self, *, family: str, like: torch.dtype = torch.float32) -> AdapterStream:
        """Return the file, to be given its modules one by one.

        Args:
            family: sd1, sd2 or sdxl.
            like: Dtype of the input, for a target without one.

        Raises:
            AdapterError: The file system refuses.
        """
        prefixes = SDXL_PREFIXES if family == "sdxl" else SD1_PREFIXES
        dtype = self.dtype or (like if like in DTYPES.values() else torch.float32)
        return AdapterStream(self.path, layout=self.layout, dtype=dtype, prefixes=prefixes)


def taken_problems(path: Path, *, overwrite: bool) -> list[Problem]:
    """Return a problem when something is there already and may not be replaced."""
    if not path.exists() or (overwrite and path.is_file()):
        return []
    advice = "choose another name" if path.is_dir() else "choose another name, or add --overwrite"
    return [Problem(str(path), f"{path} is there already; {advice}.")]


def size_fields(adapter: Adapter) -> dict[str, str]:
    """Return rank and alpha as sd-scripts' metadata has them."""
    ranks = {weights.rank for weights in adapter.values()}
    alphas = {weights.alpha for weights in adapter.values()}
    return {
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else _SEVERAL,
        "ss_network_alpha": f"{alphas.pop():g}" if len(alphas) == 1 else _SEVERAL,
    }

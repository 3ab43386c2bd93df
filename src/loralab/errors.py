"""What a user can mend: problems with a key and a sentence, and the errors that carry them.

Everything raised from here is printed without a traceback. Mistakes of our own are assertions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")
_MEMORY_PHRASES = (
    "out of memory", "not enough memory", "can't allocate memory", "STATUS_ALLOC_FAILED",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One thing to mend.

    Attributes:
        key: The config key or the file at fault, e.g. ``data.buckets.step``.
        message: One sentence: value found, what is allowed, what to do. It names the key itself.
    """

    key: str
    message: str

    def __str__(self) -> str:
        return self.message


class UserError(Exception):
    """Base of all errors that a user can mend; carries every problem found, not the first."""

    def __init__(self, *problems: Problem | str) -> None:
        assert problems, "an error without a problem tells the user nothing"
        self.problems = tuple(_as_problem(problem) for problem in problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ConfigError(UserError):
    """The configuration asks for something impossible or unknown."""


class DataError(UserError):
    """An image, a caption or a cache entry cannot be used."""


class ModelError(UserError):
    """The base model is missing, incomplete or of another family."""


class AdapterError(UserError):
    """The adapter does not fit the model, or a file does not fit the adapter."""


class ResumeError(UserError):
    """A checkpoint does not continue the run that was asked for."""


class Collector:
    """Calls checks one after another and keeps the problems they raise."""

    def __init__(self, problems: list[Problem]) -> None:
        """Add to this list."""
        self.problems = problems

    def __call__(self, check: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        """Return what the check returns, or None when it raised a `UserError`."""
        try:
            return check(*args, **kwargs)
        except UserError as error:
            self.problems.extend(error.problems)
            return None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, by the words of CUDA, MPS, cuBLAS or the CPU's allocator."""
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in _MEMORY_PHRASES)


def _as_problem(problem: Problem | str) -> Problem:
    """Return a problem; torch rebuilds an error of a loader process from its traceback's text."""
    if isinstance(problem, Problem):
        return problem
    *_, message = re.split(r"^loralab\.errors\.\w+: ", problem, flags=re.MULTILINE)
    return Problem("data", message.strip())

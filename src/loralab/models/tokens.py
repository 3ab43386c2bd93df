"""Token numbers of a caption -> the rows that a CLIP text encoder reads, and back to one sequence.

A CLIP encoder reads rows of a fixed length (77 with start and end). A longer context is made of
several rows, each encoded by itself with its positions starting again, as kohya-ss/sd-scripts does
(`library/train_util.py`, `get_input_ids` and `get_hidden_states`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Entry = TypeVar("Entry")  # a token's number, or its weight


def split_rows(
    tokens: Sequence[Entry],
    *,
    begin: Entry,
    end: Entry,
    pad: Entry,
    rows: int,
    row_length: int = 77,
) -> list[list[Entry]]:
    """Return ``rows`` rows of ``row_length`` tokens; what does not fit is cut off.

    Args:
        tokens: A caption's tokens without start and end; or their weights, laid out alike.
        pad: Fills a row; CLIP-L takes the end token for it, the OpenCLIP encoders another.
    """
    inside = row_length - 2
    line = [begin, *tokens[: rows * inside], end]
    line += [pad] * (rows * inside + 2 - len(line))
    if rows == 1:
        return [line]
    return [
        [begin, *_closed(line[1 + at : 1 + at + inside], line[-1], end=end, pad=pad)]
        for at in range(0, rows * inside, inside)
    ]


def _closed(inside: list[Entry], last: Entry, *, end: Entry, pad: Entry) -> list[Entry]:
    """Return a row after its start token: every row needs an end token of its own."""
    if pad != end:
        if inside[-1] not in (pad, end):
            last = end
        if inside[0] == pad:
            inside = [end, *inside[1:]]
    return [*inside, last]


def join_rows(states: Tensor) -> Tensor:
    """Return (B, N * (R - 2) + 2, D) of (B, N, R, D): the inner start and end states fall out."""
    first, inside, last = states[:, 0, :1], states[:, :, 1:-1].flatten(1, 2), states[:, -1, -1:]
    return torch.cat([first, inside, last], dim=1)

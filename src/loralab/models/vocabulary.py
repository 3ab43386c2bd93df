"""CLIP's own tokenizer from the vocabulary that ships with the package; nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

MERGES = Path(__file__).parent / "shipped" / "clip" / "merges.txt"
START, END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(*, pad_token: str = END) -> CLIPTokenizer:
    """Return CLIP's tokenizer of 49,408 tokens.

    Args:
        pad_token: What fills a row: the end token for CLIP-L, ``!`` for the OpenCLIP encoders.
    """
    lines = MERGES.read_text(encoding="utf-8").splitlines()[1:]  # the first names a version
    pairs: list[Any] = [tuple(line.split(" ")) for line in lines]
    return CLIPTokenizer(
        vocab=_vocabulary(lines), merges=pairs, pad_token=pad_token, model_max_length=77
    )


def _vocabulary(merges: Sequence[str]) -> dict[str, int]:
    """Return the number of every token, in the order of OpenAI's `simple_tokenizer.py`."""
    letters = _letters()
    ends = [letter + "</w>" for letter in letters]
    words = [*letters, *ends, *(merge.replace(" ", "") for merge in merges), START, END]
    return {word: number for number, word in enumerate(words)}


def _letters() -> list[str]:
    """Return a visible letter for each of the 256 bytes; those that are visible come first."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + number for number in range(256 - len(visible))]
    return [chr(code) for code in visible + others]

"""Weights of words in captions, in the notation of the common interfaces.

`(word)` counts 1.1 times, `(word:1.3)` 1.3 times, `[word]` 1 / 1.1 times; brackets nest, and a
backslash makes one of them an ordinary letter.
"""

from __future__ import annotations

import re

STRONGER, WEAKER = 1.1, 1 / 1.1
PIECES = re.compile(
    r"""
    (?P<literal> \\[()\[\]\\] ) | (?P<open> [(\[] ) |
    (?P<number> : \s* [+-]? (?: \d+ \.? \d* | \. \d+ ) \s* \) ) |
    (?P<close> [)\]] ) | (?P<text> [^\\()\[\]:]+ | [\\:] )
    """,
    re.VERBOSE,
)


def parse_weights(caption: str) -> list[tuple[str, float]]:
    """Return the pieces of a caption with their weights, neighbours of one weight joined.

    A bracket that is never closed acts to the end; one that was never opened is a letter.
    """
    pieces: list[tuple[str, float]] = []
    open_brackets: list[tuple[str, int]] = []  # kind, and the piece it stands before
    for match in PIECES.finditer(caption):
        kind, text = match.lastgroup, match[0]
        if kind == "open":
            open_brackets.append((text, len(pieces)))
        elif kind == "number" and open_brackets and open_brackets[-1][0] == "(":
            _multiply(pieces, open_brackets.pop()[1], float(text[1:-1]))
        elif kind == "close" and open_brackets and open_brackets[-1][0] == "([)]"[")]".index(text)]:
            _multiply(pieces, open_brackets.pop()[1], STRONGER if text == ")" else WEAKER)
        else:
            pieces.append((text[1:] if kind == "literal" else text, 1.0))
    for bracket, start in open_brackets:
        _multiply(pieces, start, STRONGER if bracket == "(" else WEAKER)
    return _joined(pieces)


def _multiply(pieces: list[tuple[str, float]], start: int, factor: float) -> None:
    pieces[start:] = [(text, weight * factor) for text, weight in pieces[start:]]


def _joined(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    joined: list[tuple[str, float]] = []
    for text, weight in pieces:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return joined

"""Values as they stand in a file -> values of a type, None where they are of another."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

_SIDES = re.compile(r"\s*(\d+)\s*[,x×]\s*(\d+)\s*")
_WORDS = {"true": True, "false": False, "1": True, "0": False}


def cast(kind: str, value: Any) -> Any:
    """Return a value as flag, whole, number, size, list or text; None where it is none."""
    return _CASTS[kind](value)


def literal(text: Any) -> Any:
    """Return the number, flag or list that a text spells, else the text."""
    if not isinstance(text, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, list):  # one rate for each text encoder: sd-scripts reads the first alone
        value = value[0] if value else None
    try:
        share = isinstance(value, str) and value.endswith("%")
        number = float(value[:-1]) / 100 if share else float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _size(value: Any) -> int | str | None:
    """Return a side in px, or a text of width and height."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    if sides := _SIDES.fullmatch(text):
        return f"{sides[1]},{sides[2]}"
    return None if isinstance(value, list) else _whole(value)


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else _WORDS.get(str(value).lower())


def _text(value: Any) -> str | None:
    return None if isinstance(value, dict | bool) else str(
        ",".join(map(str, value)) if isinstance(value, list) else value
    )  # fmt: skip


def _list(value: Any) -> list[str] | None:
    if isinstance(value, str):
        value = literal(value) if value.startswith("[") else value.split(",")
    return [str(item) for item in value] if isinstance(value, list | tuple) else None


_CASTS = {"flag": _flag, "whole": _whole, "number": _number, "size": _size, "text": _text,
          "list": _list}  # fmt: skip

"""One configuration field: its default, its meaning, its range."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(
    default: Any,
    help_text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    affects_result: bool = True,
    part_of: str | None = None,
) -> Any:
    """Make a dataclass field that carries its meaning.

    Args:
        default: Neutral default; a callable is used as a factory.
        help_text: One sentence with the unit.
        low: Smallest allowed value, inclusive.
        high: Largest allowed value, inclusive.
        affects_result: False when the field may change on resume without changing the result.
        part_of: Name of a record, of which some options are given, to be laid over another one.
    """
    metadata = {
        "help": help_text,
        "low": low,
        "high": high,
        "affects_result": affects_result,
        "part_of": part_of,
    }
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)

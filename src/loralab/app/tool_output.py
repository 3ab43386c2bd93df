"""What a person, or with `--json` a program, reads of the tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

MOST_ROWS = 40


def show_file(found: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what `loralab inspect` found."""
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    modules = found["modules"]
    print(f"{found['file']}: {found['family']}, {len(modules)} modules")
    show_rows(modules)
    metadata = Table("key", "value", title="metadata", title_justify="left")
    for key, value in sorted(found["metadata"].items()):
        text = value if isinstance(value, str) else json.dumps(value)
        metadata.add_row(key, text if len(text) <= 80 else text[:79] + "…")
    Console(width=120).print(metadata)


def show_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool = False) -> None:
    """Print a table of rows with the same keys; the rest of a long one is counted."""
    if as_json:
        print(json.dumps(list(rows), indent=2))
        return
    table = Table(*rows[0])
    for row in rows[:MOST_ROWS]:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=120).print(table)
    if len(rows) > MOST_ROWS:
        print(f"and {len(rows) - MOST_ROWS} more; --json shows all")


def show_outcome(text: str, *, as_json: bool, **figures: Any) -> None:
    """Print one sentence, or its figures."""
    print(json.dumps(figures) if as_json else text)

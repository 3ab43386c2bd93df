"""`loralab inspect FILE`: what an adapter file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    file: Annotated[Path, typer.Argument(help="An adapter file, or a PEFT folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the modules of an adapter file, their ranks and norms, and its metadata."""
    from loralab.app import tool_output, tools

    tool_output.show_file(tools.inspect(file), as_json=as_json)

"""`loralab resize IN OUT`: an adapter of another rank."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def resize(
    file: Annotated[Path, typer.Argument(help="An adapter file.")],
    out: Annotated[Path, typer.Argument(help="Adapter file to write.")],
    rank: Annotated[int | None, typer.Option(min=1, help="Largest rank.")] = None,
    energy: Annotated[float | None, typer.Option(min=0, max=1, help="Share to keep.")] = None,
    to: Annotated[str, typer.Option(help="kohya, lycoris or diffusers.")] = "kohya",
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Cut an adapter to a rank or to a share of its energy, by SVD of each module."""
    from loralab.app import tool_output, tools
    from loralab.errors import ConfigError, Problem

    if rank is None and energy is None:
        text = "neither --rank nor --energy is given; say how small the adapter should be."
        raise ConfigError(Problem("--rank", text))
    rows = tools.resize_file(file, out, rank=rank, energy=energy, to=to, precision=precision)
    tool_output.show_rows(rows, as_json=as_json)

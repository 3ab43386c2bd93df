"""`loralab merge`: adapters into one, or into a base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WEIGHT_HELP = "Strength of each file, in order; 1 without it."


def merge(
    files: Annotated[list[Path], typer.Argument(help="Adapter files.")],
    out: Annotated[Path, typer.Option(help="The file, or with --base the base, to write.")],
    weight: Annotated[list[float] | None, typer.Option(help=WEIGHT_HELP)] = None,
    base: Annotated[Path | None, typer.Option(help="Folder or file to add them to.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank by SVD; exact without it.")] = None,
    to: Annotated[str, typer.Option(help="kohya, lycoris or diffusers.")] = "kohya",
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Add adapters to one another, or to a base model."""
    from loralab.app import tool_output, tools
    from loralab.errors import ConfigError, Problem

    weights = weight or [1.0] * len(files)
    if len(weights) != len(files):
        text = f"--weight is given {len(weights)} times for {len(files)} files; give one for each."
        raise ConfigError(Problem("--weight", text))
    if base is not None:
        count = tools.merge_into_base(base, files, weights, out)
    else:
        count = tools.merge_adapters(files, weights, out, rank=rank, to=to, precision=precision)
    tool_output.show_outcome(f"{out}: {count} modules merged.", as_json=as_json, modules=count)

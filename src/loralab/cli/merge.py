"""`loralab merge`: adapters into one, or into a base."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from loralab.cli.options import JsonOption, OverwriteOption, PrecisionOption, To, ToOption

WEIGHT_HELP = "Strength of each file, in order; 1 without it."
BASE_HELP = "Folder or file of a model to add them to."


def merge(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Adapter files.")],
    out: Annotated[Path, typer.Option(help="The file, or with --base the base, to write.")],
    weight: Annotated[list[float] | None, typer.Option(help=WEIGHT_HELP)] = None,
    base: Annotated[Path | None, typer.Option(help=BASE_HELP)] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank by SVD; exact without it.")] = None,
    to: ToOption = To.kohya,
    precision: PrecisionOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add adapters to one another, or to a base model.

    A base keeps its own naming and numbers, so --rank, --to and --precision are for adapters.
    """
    from loralab.app import base_tools, tool_output, tools
    from loralab.app.target import Target
    from loralab.errors import ConfigError, Problem

    weights = weight or [1.0] * len(files)
    if len(weights) != len(files):
        text = f"--weight is given {len(weights)} times for {len(files)} files; give one for each."
        raise ConfigError(Problem("--weight", text))
    if odd := [value for value in weights if not math.isfinite(value)]:
        raise ConfigError(Problem("--weight", f"--weight is {odd[0]}; it must be a finite number."))
    if base is None:
        target = Target.of(out, to=to, precision=precision, overwrite=overwrite)
        count = tools.merge_adapters(files, weights, target, rank=rank)
    elif rank is not None or precision is not None or to is not To.kohya:
        text = "--rank, --to and --precision are for adapters; leave them out with --base."
        raise ConfigError(Problem("--base", text))
    else:
        count = base_tools.merge_into_base(base, files, weights, out, overwrite=overwrite)
    tool_output.show_outcome(f"{out}: {count} modules merged.", as_json=as_json, modules=count)

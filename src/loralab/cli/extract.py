"""`loralab extract BASE TUNED OUT`: what a tuned model learnt, as a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loralab.cli.options import (
    EnergyOption,
    JsonOption,
    OutArgument,
    OverwriteOption,
    Precision,
    To,
    ToOption,
)

PRECISION_HELP = "Number format of OUT; fp32 without it."
CONV_HELP = "Of convolutions beyond 1x1; as --rank without it."


def extract(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Folder or file of the base.")],
    tuned: Annotated[Path, typer.Argument(metavar="TUNED", help="The same, tuned.")],
    out: OutArgument,
    rank: Annotated[int | None, typer.Option(min=1, help="Largest rank; full without it.")] = None,
    conv_rank: Annotated[int | None, typer.Option(min=1, help=CONV_HELP)] = None,
    energy: EnergyOption = None,
    to: ToOption = To.kohya,
    precision: Annotated[Precision | None, typer.Option(help=PRECISION_HELP)] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Factorize the difference of two models, layer by layer, by SVD."""
    from loralab.app import base_tools, tool_output
    from loralab.app.target import Target

    target = Target.of(out, to=to, precision=precision, overwrite=overwrite)
    count, least = base_tools.extract(
        base, tuned, target, rank=rank, conv_rank=conv_rank, energy=energy
    )
    text = f"{out}: {count} modules, at least {least:.1%} of each update's energy."
    tool_output.show_outcome(text, as_json=as_json, modules=count, least_energy=least)

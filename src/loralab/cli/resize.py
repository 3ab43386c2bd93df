"""`loralab resize IN OUT`: an adapter of another rank."""

from __future__ import annotations

from typing import Annotated

import typer

from loralab.cli.options import (
    AdapterArgument,
    EnergyOption,
    JsonOption,
    OutArgument,
    OverwriteOption,
    PrecisionOption,
    To,
    ToOption,
)


def resize(
    file: AdapterArgument,
    out: OutArgument,
    rank: Annotated[int | None, typer.Option(min=1, help="Largest rank.")] = None,
    energy: EnergyOption = None,
    to: ToOption = To.kohya,
    precision: PrecisionOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Cut an adapter to a rank or to a share of its energy, by SVD of each module."""
    from loralab.app import tool_output, tools
    from loralab.app.target import Target
    from loralab.errors import ConfigError, Problem

    if rank is None and energy is None:
        text = "neither --rank nor --energy is given; say how small the adapter should be."
        raise ConfigError(Problem("--rank", text))
    target = Target.of(out, to=to, precision=precision, overwrite=overwrite)
    tool_output.show_rows(
        tools.resize_file(file, target, rank=rank, energy=energy), as_json=as_json
    )

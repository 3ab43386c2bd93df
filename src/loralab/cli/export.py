"""`loralab export RUN OUT --to LAYOUT`: an adapter file from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loralab.cli.options import JsonOption, OutArgument, OverwriteOption, Precision, To, ToOption

SOURCE_HELP = "A run folder, which means its newest checkpoint, or a checkpoint in its run folder."
PRECISION_HELP = "Number format of OUT; without it that of the run."


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help=SOURCE_HELP)],
    out: OutArgument,
    to: ToOption = To.kohya,
    precision: Annotated[Precision | None, typer.Option(help=PRECISION_HELP)] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the adapter of a checkpoint as a file for other programs, and verify it.

    Needs the base model of the run, not its images.
    """
    from loralab.app import tool_output
    from loralab.app.checkpoint_export import export_checkpoint
    from loralab.app.target import Target

    target = Target.of(out, to=to, precision=precision, overwrite=overwrite)
    checkpoint, steps = export_checkpoint(run, target)
    text = f"{out}: step {steps}, from {checkpoint}."
    tool_output.show_outcome(text, as_json=as_json, steps=steps, checkpoint=str(checkpoint))

"""`loralab compare RUN RUN ...`: which run is better, and whether that is more than chance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loralab.cli.options import JsonOption

RUNS_HELP = "Run folders, or a folder that holds some, such as outputs/NAME/sweeps/TIME."


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help=RUNS_HELP)],
    as_json: JsonOption = False,
) -> None:
    """Compare the last validations of runs, image by image.

    Prints each run's val/loss with its standard error, and by how much it is above the best on the
    same images at the same noise. A run is called worse if that is more than chance: Student's t
    test on the paired differences, at 5 % for all pairs of runs together.
    """
    from loralab.app import tool_output
    from loralab.app.comparison import compare as compare_runs
    from loralab.app.comparison import conclusion, table

    rows = compare_runs(runs)
    if as_json:
        tool_output.show_rows([vars(row) for row in rows], as_json=True)
        return
    tool_output.show_rows(table(rows))
    print(conclusion(rows))

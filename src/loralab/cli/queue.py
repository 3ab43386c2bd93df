"""`loralab queue FOLDER`: settings files, trained one after another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FOLDER_HELP = "Settings files as `loralab settings load` reads them, or experiments in YAML."


def queue(
    folder: Annotated[Path, typer.Argument(help=FOLDER_HELP)],
    overrides: Annotated[list[str] | None, typer.Argument(help="What lies over each.")] = None,
    stop_on_error: Annotated[bool, typer.Option(help="Leave the rest where one fails.")] = False,
) -> None:
    """Train the settings files of a folder in the order of their names.

    Each is a run of its own. Files move to complete/ or failed/; started again after any end, the
    queue goes on where it was.
    """
    from loralab.app.queue import run_queue

    raise typer.Exit(run_queue(folder, overrides or [], stop_on_error=stop_on_error))

"""`loralab evaluate-demo RUN`: what the eye sees in a run on the demo, in figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RUN_HELP = "A run folder, such as outputs/demo/RUN_ID."
DRAWINGS_HELP = "Drawings of each held-out subject; more take longer and scatter less."


def evaluate_demo(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
    drawings: Annotated[int, typer.Option(help=DRAWINGS_HELP, min=1)] = 4,
) -> None:
    """Do drawings of a demo run show the right subject in the new style?

    Draws subjects that the LoRA never saw, with the base and with the LoRA, and compares the
    drawings with real icons. Prints a table and writes evaluation.json and evaluation.png into
    the run folder. Takes about a minute and a half on one CPU thread, a third of it when another
    run has drawn the base already.
    """
    from loralab.app.demo_run import read_run

    read_run(run)  # refused before torch loads
    from loralab.app.demo_quality import evaluate_run

    evaluate_run(run, rounds=drawings)

"""`loralab check [OVERRIDES]`: everything about a training but the training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OUT_HELP = "Also write config.yaml, settings.json, tags.txt and lr.png to this folder."
DIR_HELP = "A folder of options of your own."


def check(
    overrides: Annotated[list[str] | None, typer.Argument(help="As after `train.py`.")] = None,
    out: Annotated[Path | None, typer.Option(help=OUT_HELP)] = None,
    config_dir: Annotated[Path | None, typer.Option(help=DIR_HELP)] = None,
) -> None:
    """Check a training and show its plan: buckets, steps, schedule, tags. Nothing is trained."""
    from loralab.app.dry_run import check_run

    check_run(overrides or [], out=out, config_dir=config_dir)

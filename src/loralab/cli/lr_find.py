"""`loralab lr-find [OVERRIDES]`: which learning rate to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OVERRIDES_HELP = "What python train.py would be given, such as experiment=sd15_style."


def lr_find(
    overrides: Annotated[list[str] | None, typer.Argument(help=OVERRIDES_HELP)] = None,
    low: Annotated[float, typer.Option(help="First rate.")] = 1e-5,
    high: Annotated[float, typer.Option(help="Last rate.")] = 0.1,
    steps: Annotated[int, typer.Option(help="Optimizer steps.", min=10)] = 60,
    images: Annotated[int, typer.Option(help="Images measured after each step.", min=1)] = 8,
    chart: Annotated[Path | None, typer.Option(help="PNG to write.")] = None,
) -> None:
    """Train with rising rates and say at which one the loss falls fastest.

    The loss is that of the same few images at the same noise and timesteps after every step, so
    the curve is smooth and a single short run tells. Nothing of the run is kept but the chart.
    """
    from loralab.app.composition import compose_config

    config = compose_config(overrides or [])  # refused before torch loads
    from loralab.app.rate_finder import find_rate

    find_rate(config, low=low, high=high, steps=steps, images=images, chart=chart)

"""`loralab replay --batches FILE --out ADAPTER [overrides...]`: train on recorded micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BATCHES_HELP = "Recording: `train.py --record` writes one, docs/replay.md tells its form."
OUT_HELP = "Adapter file to write, in float32 and kohya's names."
EPOCH_HELP = (
    "Micro-batches of an epoch of the recorded run, which took a step at the end of each epoch."
)
OVERRIDES_HELP = "As those of train.py; adapter.init_from=FILE gives the adapter to start from."


def replay(
    batches: Annotated[Path, typer.Option(help=BATCHES_HELP)],
    out: Annotated[Path, typer.Option(help=OUT_HELP)],
    overrides: Annotated[list[str] | None, typer.Argument(help=OVERRIDES_HELP)] = None,
    epoch_length: Annotated[int | None, typer.Option(min=1, help=EPOCH_HELP)] = None,
) -> None:
    """Train on recorded latents, noise, timesteps and tokens, in order, and compare.

    Composes a run as `train.py` does with the same overrides, but reads no image. Prints one JSON
    line for every micro-batch: its loss, and after each optimizer step the gradient norm before
    clipping and the learning rates. Says in the end whether the figures in the recording came out
    again, bit for bit, and if not, where they first differ.
    """
    from loralab.app.composition import compose_run
    from loralab.errors import ConfigError

    raw, problems = compose_run(  # refused before torch loads
        overrides or [],
        instead_of_demo="~experiment, or the experiment of the run that was recorded",
    )
    if problems:
        raise ConfigError(*problems)
    from loralab.app.replay import replay_run

    replay_run(raw, batches, out, epoch_length=epoch_length)

"""`loralab extract BASE TUNED OUT`: what a tuned model learnt, as a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CONV_HELP = "Of convolutions beyond 1x1; as --rank without it."


def extract(
    base: Annotated[Path, typer.Argument(help="Folder or file of the base.")],
    tuned: Annotated[Path, typer.Argument(help="Folder or file of the tuned model.")],
    out: Annotated[Path, typer.Argument(help="Adapter file to write.")],
    rank: Annotated[int | None, typer.Option(min=1, help="Largest rank; full without it.")] = None,
    conv_rank: Annotated[int | None, typer.Option(min=1, help=CONV_HELP)] = None,
    energy: Annotated[float | None, typer.Option(min=0, max=1, help="Share to keep.")] = None,
    to: Annotated[str, typer.Option(help="kohya, lycoris or diffusers.")] = "kohya",
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Factorize the difference of two models, layer by layer, by SVD."""
    from loralab.app import tool_output, tools

    count, least = tools.extract(
        base, tuned, out, rank=rank, conv_rank=conv_rank, energy=energy, to=to, precision=precision
    )
    text = f"{out}: {count} modules, at least {least:.1%} of each update's energy."
    tool_output.show_outcome(text, as_json=as_json, modules=count, least_energy=least)

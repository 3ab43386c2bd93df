"""`loralab convert IN OUT --to LAYOUT`: another naming, container or precision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    file: Annotated[Path, typer.Argument(help="An adapter file, or a PEFT folder.")],
    out: Annotated[Path, typer.Argument(help="Ends in .safetensors, .ckpt, .pt or .bin.")],
    to: Annotated[str, typer.Option(help="kohya, lycoris or diffusers.")],
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write an adapter file in another layout; alpha and metadata are kept."""
    from loralab.app import tool_output, tools

    count = tools.convert(file, out, to=to, precision=precision)
    tool_output.show_outcome(f"{out}: {count} modules.", as_json=as_json, modules=count)

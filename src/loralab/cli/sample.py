"""`loralab sample RUN --prompt TEXT`: pictures of an adapter beside those of its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loralab.cli.options import OverwriteOption

SOURCE_HELP = "A run folder, or an adapter file."
PROMPTS_HELP = (
    "File of prompts, one a line, each with options of its own: --w --h (px), --d (seed), "
    "--s (steps), --l (guidance), --n (negative prompt), --am (strength)."
)
BASE_HELP = "Folder or file of the base; without it the one that the file was trained on."


def sample(
    source: Annotated[Path, typer.Argument(metavar="RUN|FILE", help=SOURCE_HELP)],
    prompt: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help=PROMPTS_HELP)] = None,
    out: Annotated[Path, typer.Option(metavar="PNG", help="Grid to write.")] = Path("sample.png"),
    base: Annotated[str | None, typer.Option(help=BASE_HELP)] = None,
    strength: Annotated[float, typer.Option(help="Multiple of the adapter's update.")] = 1.0,
    negative: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    steps: Annotated[int, typer.Option(min=1, max=500, help="Sampling steps.")] = 25,
    guidance: Annotated[float, typer.Option(min=1, help="1 is off.")] = 7.5,
    seed: Annotated[int, typer.Option(min=0, help="Of the start noise.")] = 0,
    width: Annotated[int | None, typer.Option(min=8, help="Px; the base's own without.")] = None,
    height: Annotated[int | None, typer.Option(min=8, help="Px; the base's own without.")] = None,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="Leave out the base's pictures.")
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw prompts with an adapter and with its base, at the same seeds, into one grid."""
    from loralab.app import sample as sampling
    from loralab.app.prompt_lines import Shot, read_prompt_file
    from loralab.app.target import taken_problems
    from loralab.errors import ConfigError, Problem

    problems = taken_problems(out, overwrite=overwrite)
    if out.suffix.lower() != ".png":
        problems.append(Problem("--out", f"{out} must end in .png."))
    if not prompt and prompts is None:
        text = "neither --prompt nor --prompts is given; say what to draw."
        problems.append(Problem("--prompt", text))
    if problems:
        raise ConfigError(*problems)
    found = sampling.find_source(source, has_base=base is not None)
    side = sampling.default_side(found)
    defaults = Shot("", negative, width or side, height or side, seed, steps, guidance, strength)
    shots = [Shot(**{**vars(defaults), "prompt": text}) for text in prompt or ()]
    shots += read_prompt_file(prompts, defaults) if prompts is not None else []
    sampling.draw_grid(found, shots, out, base=base, with_base=not adapter_only)
    print(f"{out}: {len(shots)} prompts with {found.adapter}.")

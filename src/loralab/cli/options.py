"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

SUFFIX_HELP = "Ends in .safetensors, .ckpt, .pt or .bin."


class To(StrEnum):
    """Key naming of the file to write; lycoris is kohya's naming, which LyCORIS shares."""

    kohya = "kohya"
    lycoris = "lycoris"
    diffusers = "diffusers"


class Precision(StrEnum):
    """Number format of the file to write."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    float = "float"
    bits_32 = "32"
    bits_16 = "16"


AdapterArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="An adapter file, or a PEFT folder.")
]
OutArgument = Annotated[
    Path, typer.Argument(metavar="OUT", help=f"Adapter file to write. {SUFFIX_HELP}")
]
ToOption = Annotated[To, typer.Option(help="Key naming of OUT.")]
PrecisionOption = Annotated[
    Precision | None, typer.Option(help="Number format of OUT; without it that of the input.")
]
ENERGY_HELP = "Share of each update's squared singular values to keep, 0 to 1."
EnergyOption = Annotated[float | None, typer.Option(min=0, max=1, help=ENERGY_HELP)]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace OUT when it is there already.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

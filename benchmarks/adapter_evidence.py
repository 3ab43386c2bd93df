"""Evidence about adapter files: read by other programs, named by the rules, edited exactly."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from runs import ROOT

sys.path.insert(0, str(ROOT))


def reloading(output: Path) -> Iterator[str]:
    """Every kind, family and naming, read by a program that is not ours."""
    from tests.adapters.reloading import ALPHA, RANK, cases, compare, reader

    yield f"Tiny models of each family, five steps at rank {RANK} (BOFT 8) and alpha {ALPHA:g} on"
    yield "every linear layer and convolution of UNet and text encoders, a float32 file, a fresh"
    yield "model. diffusers reads wherever it can. The figures are the largest differences of all"
    yield "outputs.\n"
    yield "| kind | family | naming | read by | file against live | live against base |"
    yield "|---|---|---|---|---|---|"
    for kind, family, layout in cases():
        error, effect = compare(kind, family, layout, output)
        row = (kind, family, layout, reader(kind, layout), f"{error:.1e}", f"{effect:.2f}")
        yield f"| {' | '.join(row)} |"

"""The families there are, by name. Importing this does not import torch."""

from __future__ import annotations

import difflib

from loralab.errors import ModelError, Problem
from loralab.models import sd1, sd2, sdxl
from loralab.models.family import FamilySpec

SPECS = {spec.name: spec for spec in (sd1.SPEC, sd2.SPEC, sdxl.SPEC)}


def family_spec(name: str) -> FamilySpec:
    """Return a family's layout.

    Raises:
        ModelError: When no family has that name.
    """
    if name not in SPECS:
        near = difflib.get_close_matches(name, SPECS, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Use one of them."
        allowed = ", ".join(SPECS)
        raise ModelError(
            Problem("model.family", f"model.family is {name}; known are: {allowed}. {hint}")
        )
    return SPECS[name]

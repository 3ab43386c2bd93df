"""A configuration as the flat list of settings that TensorBoard's HPARAMS tab shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SKIPPED = ("run_id", "resume", "output_dir", "check_only", "logger", "callbacks", "export", "name",
            "optimized_metric")  # fmt: skip


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return leaves by dotted key: numbers and flags as they are, the rest as short text."""
    leaves: dict[str, Any] = {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        if key in _SKIPPED or name == "_partial_":
            continue
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{key}.")
        elif isinstance(value, bool | int | float):
            leaves[key] = value
        else:
            leaves[key] = str(value)[:120]
    return leaves

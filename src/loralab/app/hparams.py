"""A configuration as the flat list of settings that TensorBoard's HPARAMS tab shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig

_SKIPPED = ("callbacks", "check_only", "export", "logger", "name", "optimized_metric", "output_dir",
            "preview", "result_metrics", "resume", "run_id")  # fmt: skip


_FEATURED = ("optimizer.lr", "adapter.rank", "adapter.alpha", "trainer.max_steps", "seed")


def featured(settings: Mapping[str, Any]) -> list[str]:
    """Return the keys that were overridden on the command line; without any, the usual ones."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    keys = {override.split("=")[0].lstrip("+~") for override in overrides}
    by_hand = [name for name in settings if name in keys or name.rpartition(".")[0] in keys]
    return by_hand or [name for name in _FEATURED if name in settings]


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

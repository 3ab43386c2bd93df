"""Checkpoints and rate schedules shared by the stages of the demo's pretraining."""

import math
import os
from pathlib import Path
from typing import Any

import torch


def cosine_decay(step: int, num_steps: int, *, warmup_steps: int, flat_share: float = 0.4) -> float:
    """Return the rate's factor in [0, 1]: linear warmup, a flat share, then a cosine to 2 %."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = max(0.0, (step / num_steps - flat_share) / (1 - flat_share))
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def save_checkpoint(path: Path, step: int, **parts: Any) -> None:
    """Write the state of all parts and the number of finished steps; replace atomically."""
    state = {name: part.state_dict() for name, part in parts.items()}
    partial = path.with_suffix(".partial")
    torch.save({"step": step, **state}, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path, **parts: Any) -> int:
    """Restore all parts and return the number of finished steps; 0 if there is no checkpoint."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])

"""Checkpoints and rate schedules shared by the stages of the demo's pretraining."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loralab.files import replacing


def cosine_decay(step: int, num_steps: int, *, warmup_steps: int, flat_share: float = 0.4) -> float:
    """Return the rate's factor in [0, 1]: linear warmup, a flat share, then a cosine to 2 %."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = max(0.0, (step / num_steps - flat_share) / (1 - flat_share))
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass
class Progress:
    """How far a stage has come, and the CPU time of the processes that brought it there."""

    step: int = 0
    earlier_minutes: float = 0.0

    def steps(self, num_steps: int) -> Iterator[int]:
        """Yield the steps that are left; `step` counts the one under way as done."""
        for step in range(self.step, num_steps):
            self.step = step + 1
            yield step

    def cpu_minutes(self) -> float:
        """Return the CPU minutes of this process and of the interrupted ones before it."""
        return self.earlier_minutes + time.process_time() / 60


def save_checkpoint(path: Path, progress: Progress, **parts: Any) -> None:
    """Write the state of all parts and the progress; replace atomically."""
    state = {name: part.state_dict() for name, part in parts.items()}
    state["progress"] = {"step": progress.step, "earlier_minutes": progress.cpu_minutes()}
    with replacing(path) as part:
        torch.save(state, part)


def load_checkpoint(path: Path, **parts: Any) -> Progress:
    """Restore all parts and return the progress; that of a new stage if there is no checkpoint."""
    if not path.exists():
        return Progress()
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return Progress(**state["progress"])

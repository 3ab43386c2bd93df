"""What validation measures: each held-out content once, and as many of the trained ones."""

from __future__ import annotations

from collections.abc import Sequence

from loralab.config.records import RunConfig
from loralab.data.dataset import Item
from loralab.errors import Problem


def measured_once(items: Sequence[Item]) -> tuple[Item, ...]:
    """Return the first appearance of every content: a copy would count an image twice."""
    return tuple(item for item in items if item.repeat == 0)


def choose_probe(training: Sequence[Item], count: int) -> tuple[Item, ...]:
    """Return so many trained images, each once, chosen by their content; no class images."""
    own = [item for item in measured_once(training) if not item.source.is_prior]
    return tuple(sorted(own, key=lambda item: item.key)[:count])


def held_out_problems(config: RunConfig, held_out: Sequence[Item]) -> list[Problem]:
    """Return what only the images show to be wrong."""
    patience = config.validation.patience
    if patience is None or len(held_out) > 1:
        return []
    text = (
        f"validation.patience is {patience}, but a single image is held out, which cannot tell a "
        "gain from chance; hold out at least two, or set validation.patience=null."
    )
    return [Problem("validation.patience", text)]

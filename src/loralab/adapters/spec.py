"""What the user asks for: one adapter for one part of the model. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from loralab.errors import AdapterError, Problem


@dataclass(frozen=True)
class AdapterSpec:
    """One adapter for one part (the UNet, a text encoder).

    Attributes:
        kind: A key of ``kinds.KINDS``.
        rank: Width r of the two factors; it is never clamped to a module's size.
        alpha: The update is scaled by ``alpha / rank``.
        dropout: Probability of dropping an input element of the down factor, in training only.
        targets: Module names (``to_q``, ``to_out.0``; compared with the end of a module's dotted
            name) or regular expressions (anything with one of ``* [ ] ( ) ^ $ | \\ + ?``;
            compared with the complete dotted name).

    Raises:
        AdapterError: A value is out of its range; all of them are named.
    """

    kind: str
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        problems = []
        if self.rank < 1:
            problems.append(
                Problem("adapter.rank", f"adapter.rank is {self.rank}; it must be at least 1.")
            )
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            text = (
                f"adapter.alpha is {self.alpha:g}; it must be a positive number. "
                f"Use the rank ({self.rank}) for a scale of 1."
            )
            problems.append(Problem("adapter.alpha", text))
        if not 0 <= self.dropout < 1:
            text = f"adapter.dropout is {self.dropout:g}; it must be at least 0 and below 1."
            problems.append(Problem("adapter.dropout", text))
        if not self.targets:
            text = "adapter.targets is empty; name at least one module, e.g. to_q."
            problems.append(Problem("adapter.targets", text))
        if problems:
            raise AdapterError(*problems)

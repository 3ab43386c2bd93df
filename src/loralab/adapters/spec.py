"""What the user asks for: one adapter for one part of the model. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loralab.adapters.blocks import Blocks
from loralab.errors import AdapterError, Problem


@dataclass(frozen=True)
class Overrides:
    """Settings of single modules: targets (names or patterns) and what holds for their modules.

    Where several match, the last one wins. A rank without an alpha keeps the scale alpha / rank.
    """

    rank: Mapping[str, int] = field(default_factory=dict)
    alpha: Mapping[str, float] = field(default_factory=dict)
    lr_scale: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AdapterSpec:
    """One adapter for one part (the UNet, a text encoder).

    Attributes:
        kind: A key of ``kinds.KINDS``.
        rank: Width r of the factors; it is never clamped to a module's size.
        alpha: The update is scaled by ``alpha / rank``.
        dropout: Probability of dropping an input element of the down factor, in training only.
        targets: Module names (``to_q``, ``to_out.0``; compared with the end of a module's dotted
            name) or regular expressions (anything with one of ``* [ ] ( ) ^ $ | \\ + ?``;
            compared with the complete dotted name).
        conv_rank: Rank of convolutions larger than 1x1; None is ``rank``.
        conv_alpha: Their alpha; None keeps the scale.
        rank_stabilized: Scale by ``alpha / sqrt(rank)`` (Kalajdzievski 2023).
        inner_dropout: Dropout after the down factor, as sd-scripts places it.
        rank_dropout: Probability of dropping a rank (LoRA) or an output row (other kinds).
        module_dropout: Probability that a forward pass leaves a module's adapter out.
        overrides: Settings of single modules.
        blocks: Settings by block of the UNet.
        options: What only one kind knows, such as ``decompose_factor``.

    Raises:
        AdapterError: A value is out of its range; all of them are named.
    """

    kind: str
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    conv_rank: int | None = None
    conv_alpha: float | None = None
    rank_stabilized: bool = False
    inner_dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    overrides: Overrides = field(default_factory=Overrides)
    blocks: Blocks | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

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
        for name in ("dropout", "inner_dropout", "rank_dropout", "module_dropout"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                text = f"adapter.{name} is {value:g}; it must be at least 0 and below 1."
                problems.append(Problem(f"adapter.{name}", text))
        if not self.targets:
            text = "adapter.targets is empty; name at least one module, e.g. to_q."
            problems.append(Problem("adapter.targets", text))
        if problems:
            raise AdapterError(*problems)

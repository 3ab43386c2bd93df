"""How many tokens a caption has, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loralab.models.components import load_tokenizer
from loralab.models.family import FamilySpec, ModelFacts
from loralab.models.opening import open_model
from loralab.models.prompt_weights import parse_weights
from loralab.models.source import ModelPlace


class CaptionCounter:
    """Counts as the family's first text encoder does; all of a family cut words alike."""

    def __init__(
        self,
        place: ModelPlace | str | Path,
        spec: FamilySpec,
        facts: ModelFacts,
        *,
        prompt_weights: bool = False,
    ) -> None:
        """Load the tokenizer.

        Raises:
            ModelError: When it does not belong to the model.
        """
        self.tokenizer = load_tokenizer(
            open_model(place, spec), spec.text[0], vocab_size=facts.text[0].vocab_size
        )
        self.prompt_weights = prompt_weights

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, start and end left out."""
        return [sum(self._count(piece) for piece in self._pieces(text)) for text in texts]

    def _pieces(self, text: str) -> list[str]:
        return [piece for piece, _ in parse_weights(text)] if self.prompt_weights else [text]

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

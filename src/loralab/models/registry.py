"""Families by name; the one way to a loaded model. Importing this does not import torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from loralab.errors import ModelError, Problem
from loralab.models import sd1
from loralab.models.facts import model_facts
from loralab.models.family import FamilySpec, ModelFacts, ModelFamily

if TYPE_CHECKING:
    import torch

SPECS = {"sd1": sd1.SPEC}
LOADERS: dict[str, Callable[..., ModelFamily]] = {"sd1": sd1.load}
ATTENTION_KINDS = ("sdpa", "eager")
WEIGHT_DTYPES = ("float32", "bfloat16", "float16")


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


def load_family(
    name: str,
    path: str | Path,
    *,
    weight_dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    clip_skip: int = 1,
    max_tokens: int | None = None,
    gradient_checkpointing: bool = False,
    attention: str = "sdpa",
) -> ModelFamily:
    """Load a base model from a folder in diffusers' layout, frozen and in eval mode.

    Args:
        weight_dtype: Of the frozen UNet and text encoder; float32 when None. The VAE is float32.
        clip_skip: 1 takes the text encoder's last layer, 2 the one before, and so on.
        max_tokens: Length of a tokenized caption; None takes all that the encoder allows.
        gradient_checkpointing: Recompute activations in backward; active only in train mode.
        attention: ``sdpa``, or ``eager`` for the plain formula.

    Raises:
        ModelError: With every problem of the folder and of the options.
    """
    import torch

    family_spec(name)
    path = Path(path)
    facts = model_facts(path, family=name)
    dtype = torch.float32 if weight_dtype is None else weight_dtype
    max_tokens = facts.max_tokens if max_tokens is None else max_tokens
    problems = _option_problems(facts, dtype, clip_skip, max_tokens, attention)
    if problems:
        raise ModelError(*problems)
    return LOADERS[name](
        path,
        facts,
        weight_dtype=dtype,
        device=device,
        clip_skip=clip_skip,
        max_tokens=max_tokens,
        gradient_checkpointing=gradient_checkpointing,
        attention=attention,
    )


def _option_problems(
    facts: ModelFacts, dtype: torch.dtype, clip_skip: int, max_tokens: int, attention: str
) -> list[Problem]:
    problems = []
    if str(dtype).removeprefix("torch.") not in WEIGHT_DTYPES:
        message = f"model.weight_dtype is {dtype}; allowed are {', '.join(WEIGHT_DTYPES)}."
        problems.append(Problem("model.weight_dtype", message))
    if not 1 <= clip_skip <= facts.num_text_layers:
        message = (
            f"model.clip_skip is {clip_skip}; this text encoder has "
            f"{facts.num_text_layers} layers, so it must be between 1 and {facts.num_text_layers}."
        )
        problems.append(Problem("model.clip_skip", message))
    if not 3 <= max_tokens <= facts.max_tokens:
        message = (
            f"model.max_tokens is {max_tokens}; this text encoder allows 3 to {facts.max_tokens}."
        )
        problems.append(Problem("model.max_tokens", message))
    if attention not in ATTENTION_KINDS:
        message = f"model.attention is {attention}; allowed are {', '.join(ATTENTION_KINDS)}."
        problems.append(Problem("model.attention", message))
    return problems

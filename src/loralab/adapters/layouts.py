"""The file layouts: tensors and names of adapters, both directions, without a model.

kohya: flat names, ``lora_down`` / ``lora_up`` / ``alpha`` per module; LyCORIS writes its kinds in
the same way. diffusers: dotted names as in PEFT, ``lora_A`` / ``lora_B``, and rank and alpha in a
JSON field of the metadata. Files are in ``container.py``, live models in ``export.py``.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor

from loralab.adapters.names import (
    ModuleName,
    dotted_name,
    kohya_name,
    module_name,
    parse_dotted,
    parse_kohya,
)
from loralab.adapters.weights import ALGORITHMS, DORA, DOWN, UP, ModuleWeights
from loralab.errors import AdapterError, Problem

DIFFUSERS_METADATA_KEY = "lora_adapter_metadata"
LAYOUTS = ("kohya", "diffusers")
Adapter = Mapping[ModuleName, ModuleWeights]

_PEFT_NAMES = {DOWN: "lora_A.weight", UP: "lora_B.weight", DORA: "lora_magnitude_vector.weight"}
_ROLES = {
    **{name: name for a in ALGORITHMS.values() for name in (*a.allowed, *set().union(*a.needed))},
    **{name: role for role, name in _PEFT_NAMES.items()},
    "lora_magnitude_vector": DORA,
    "lora.down.weight": DOWN,
    "lora.up.weight": UP,
    "diff_b": "diff_b",
    "alpha": "alpha",
}


@dataclass(frozen=True)
class Entry:
    """Where one module's tensors are in a file.

    Attributes:
        spelled: The module's name as the file spells it.
        keys: The file's key of every tensor by its role; ``alpha`` may be among them.
    """

    spelled: str
    keys: Mapping[str, str]


def index(keys: Iterable[str], *, source: str) -> dict[ModuleName, Entry]:
    """Return the modules of a file of any layout, in the file's order, from its keys alone.

    Raises:
        AdapterError: A key belongs to no module of Stable Diffusion, or there is none; all named.
    """
    found: dict[ModuleName, tuple[str, dict[str, str]]] = {}
    problems = []
    for key in keys:
        spelled, role = _split(key)
        name = parse_kohya(spelled) or parse_dotted(spelled) if role else None
        if name is None or role is None:
            text = f"{source} holds {key}, which is no tensor of an adapter for Stable Diffusion."
            problems.append(Problem(source, text))
            continue
        found.setdefault(name, (spelled, {}))[1][role] = key
    if not found:
        seen = f" ({len(problems)} other tensors)" if problems else ""
        text = f"{source} holds no adapter{seen}; give a file with LoRA weights."
        raise AdapterError(Problem(source, text))
    if problems:
        raise AdapterError(*problems)
    return {name: Entry(spelled, roles) for name, (spelled, roles) in found.items()}


def assemble(
    entry: Entry, tensors: Mapping[str, Tensor], alpha: float | None, *, source: str
) -> ModuleWeights:
    """Return one module's weights from its tensors by role.

    Without a stored alpha, or with 0, every layout means alpha = rank.

    Raises:
        AdapterError: Tensors are missing, not finite, of shapes that do not belong together, or
            the alpha is no positive number; all named.
    """
    name = entry.spelled
    problems = []
    parts = dict(tensors)
    stored = parts.pop("alpha", None)
    if stored is not None:
        alpha = float(stored)
    for role, word, other in ((DOWN, "down", UP), (UP, "up", DOWN)):
        if other in parts and role not in parts:
            problems.append(f"{source} lacks the {word} factor of {name}")
    for role, tensor in parts.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            problems.append(f"{source} has a value that is not finite in {role} of {name}")
    weights = ModuleWeights(parts, 1.0)
    rank: int | None = None
    if not problems:
        try:
            rank = weights.rank
        except AdapterError as error:
            problems.append(f"{source} has for {name}: {error.problems[0]}")
    if alpha is None or (alpha == 0 and rank):
        alpha = float(rank) if rank else 0.0 if "oft_blocks" in parts else 1.0
    if not (math.isfinite(alpha) and alpha >= 0 and (alpha > 0 or "oft_blocks" in parts)):
        problems.append(f"{source} has alpha {alpha:g} for {name}; it must be a positive number")
    if problems:
        raise AdapterError(*(Problem(source, f"{text}.") for text in problems))
    return ModuleWeights(parts, alpha)


def pack_kohya(adapter: Adapter, prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the file's tensors by their flat keys."""
    tensors: dict[str, Tensor] = {}
    for name, weights in adapter.items():
        flat = kohya_name(name, prefixes)
        assert parse_kohya(flat) == name, f"{flat} does not lead back to {name}"
        tensors |= {f"{flat}.{role}": tensor for role, tensor in weights.tensors.items()}
        tensors[f"{flat}.alpha"] = torch.tensor(weights.alpha, dtype=torch.float64)
    return tensors


def pack_diffusers(adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the file's tensors and the metadata that carries rank and alpha to diffusers.

    Raises:
        AdapterError: A module's kind has no such naming.
    """
    tensors: dict[str, Tensor] = {}
    parts: dict[str, dict[ModuleName, ModuleWeights]] = {}
    for name, weights in adapter.items():
        if (
            weights.algorithm not in ("lora", "loha", "lokr")
            or "lora_mid.weight" in weights.tensors
        ):
            text = (
                f"{name} is of a kind ({weights.algorithm}) that the diffusers layout cannot hold; "
                "use the kohya layout."
            )
            raise AdapterError(Problem("export.layouts", text))
        parts.setdefault(name.part, {})[name] = weights
        for role, tensor in weights.tensors.items():
            spelled = _PEFT_NAMES.get(role, role)
            value = tensor.flatten() if role == DORA and tensor.dim() == 2 else tensor
            if role == DORA and tensor.dim() == 4:
                value = tensor.reshape(1, -1, 1, 1)  # PEFT's shape for convolutions
            tensors[f"{dotted_name(name)}.{spelled}"] = value
    config: dict[str, Any] = {}
    for part, layers in parts.items():
        config |= {f"{part}.{key}": value for key, value in _peft_fields(layers).items()}
    # The spelling of StableDiffusionPipeline.save_lora_weights (diffusers 0.42).
    text = json.dumps(config, indent=2, sort_keys=True)
    return tensors, {"format": "pt", DIFFUSERS_METADATA_KEY: text}


def stored_alphas(
    names: Iterable[ModuleName], metadata: Mapping[str, str], *, source: str
) -> dict[ModuleName, float]:
    """Return the alpha of every module that a file's adapter metadata speaks of.

    Raises:
        AdapterError: The metadata cannot be read.
    """
    if DIFFUSERS_METADATA_KEY not in metadata:
        return {}
    alphas = {}
    try:
        config = json.loads(metadata[DIFFUSERS_METADATA_KEY])
        for name in names:
            prefix = f"{name.part}." if any(k.startswith(f"{name.part}.") for k in config) else ""
            pattern: dict[str, float] = config.get(f"{prefix}alpha_pattern") or {}
            default = config.get(f"{prefix}lora_alpha", config.get(f"{prefix}alpha"))
            path = dotted_name(name).partition(".")[2]
            alpha = pattern.get(get_pattern_key(list(pattern), path), default)
            if alpha is not None:
                alphas[name] = float(alpha)
    except (ValueError, TypeError, AttributeError, re.error) as error:
        text = f"{source} has an unreadable {DIFFUSERS_METADATA_KEY} in its metadata: {error}."
        raise AdapterError(Problem(source, text)) from error
    return alphas


def _split(key: str) -> tuple[str, str | None]:
    """Return the module's name as spelled and the role of the tensor; None is an unknown role."""
    flat, _, rest = key.partition(".")
    if rest in _ROLES and not flat.startswith("base_model"):
        return flat, _ROLES[rest]
    for ending, role in _ROLES.items():
        if key.endswith(f".{ending}"):
            return key.removesuffix(f".{ending}").removesuffix(".processor"), role
    return key, None


def _peft_fields(layers: Adapter) -> dict[str, Any]:
    """Return the PEFT configuration from which diffusers rebuilds one part's layers."""
    ranks = {path_of(name): weights.rank or int(weights.alpha) for name, weights in layers.items()}
    alphas = {path_of(name): weights.alpha for name, weights in layers.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    first = next(iter(layers.values()))
    fields: dict[str, Any] = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(ranks),
        "rank_pattern": {f"^{re.escape(p)}": value for p, value in ranks.items() if value != rank},
        "alpha_pattern": {
            f"^{re.escape(p)}": value for p, value in alphas.items() if value != alpha
        },
    }
    if DORA in first.tensors:
        fields["use_dora"] = True
    if first.algorithm != "lora":
        fields["peft_type"] = first.algorithm.upper()
    return fields


def path_of(name: ModuleName) -> str:
    """Return the path of a module in the live model."""
    return dotted_name(name).partition(".")[2]


def live_name(part: str, path: str) -> ModuleName:
    """Return the name of a live module."""
    return module_name(part, path)

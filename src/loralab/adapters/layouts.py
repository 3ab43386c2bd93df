"""The two file layouts: tensors and names of LoRA factors, both directions.

kohya: flat names, ``lora_down`` / ``lora_up`` / ``alpha`` per module. diffusers: dotted names,
``lora_A`` / ``lora_B``, and the scale in a JSON field of the metadata. Files are in ``export.py``.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from loralab.adapters.kohya import kohya_names
from loralab.adapters.layers import LoraWeights, adaptable_modules
from loralab.errors import AdapterError, Problem

DIFFUSERS_METADATA_KEY = "lora_adapter_metadata"
PartWeights = dict[str, LoraWeights]


def pack_kohya(
    weights: Mapping[str, PartWeights], names: Mapping[str, Mapping[str, str]]
) -> dict[str, Tensor]:
    """Return the file's tensors, given every part's factors and kohya names."""
    tensors = {}
    for part, layers in weights.items():
        for path, lora in layers.items():
            name = names[part][path]
            tensors[f"{name}.lora_down.weight"] = lora.down
            tensors[f"{name}.lora_up.weight"] = lora.up
            tensors[f"{name}.alpha"] = torch.tensor(lora.alpha, dtype=torch.float64)
    return tensors


def pack_diffusers(
    weights: Mapping[str, PartWeights],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the file's tensors and the metadata that carries rank and alpha to diffusers."""
    tensors = {}
    config: dict[str, Any] = {}
    for part, layers in weights.items():
        for path, lora in layers.items():
            tensors[f"{part}.{path}.lora_A.weight"] = lora.down
            tensors[f"{part}.{path}.lora_B.weight"] = lora.up
        config |= {f"{part}.{key}": value for key, value in _peft_fields(layers).items()}
    # The spelling of StableDiffusionPipeline.save_lora_weights (diffusers 0.42).
    text = json.dumps(config, indent=2, sort_keys=True)
    return tensors, {"format": "pt", DIFFUSERS_METADATA_KEY: text}


def unpack(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    parts: Mapping[str, nn.Module],
    *,
    prefixes: Mapping[str, str],
    source: str,
) -> dict[str, PartWeights]:
    """Return every part's factors from a file of either layout, checked against the modules.

    Without a stored alpha both layouts mean alpha = rank.

    Args:
        parts: The model's parts by name; they may be on meta and need no adapter.
        prefixes: Kohya's prefix of each part.
        source: The file's name, for the messages.

    Raises:
        AdapterError: Keys belong to no module, or a module's tensors are incomplete or of a
            wrong shape; all of them are named.
    """
    bases = {part: dict(adaptable_modules(module)) for part, module in parts.items()}
    if any(".lora_down." in key or ".lora_up." in key for key in tensors):
        known = {
            name: (part, path)
            for part, module in parts.items()
            for path, name in kohya_names(module, prefixes[part]).items()
        }
        groups = _group(tensors, splitter=_split_kohya)
        alphas = {name: float(t["alpha"]) for name, t in groups.items() if "alpha" in t}
    else:
        known = {f"{part}.{path}": (part, path) for part in bases for path in bases[part]}
        groups = _group(tensors, splitter=_split_diffusers)
        alphas = _diffusers_alphas(metadata, known, source)

    problems: list[Problem] = []
    weights: dict[str, PartWeights] = {part: {} for part in parts}
    for name, group in groups.items():
        if name not in known:
            problems.append(_unknown(name, known, source))
            continue
        part, path = known[name]
        base = bases[part][path].weight
        assert isinstance(base, Tensor)
        try:
            weights[part][path] = _read_pair(name, group, base.shape, alphas.get(name), source)
        except AdapterError as error:
            problems += error.problems
    if not groups:
        text = f"{source} holds no adapter; give a file with LoRA weights."
        problems.append(Problem(source, text))
    if problems:
        raise AdapterError(*problems)
    return weights


def _peft_fields(layers: PartWeights) -> dict[str, Any]:
    """Return the LoraConfig fields from which diffusers rebuilds one part's layers."""
    rank = Counter(lora.rank for lora in layers.values()).most_common(1)[0][0]
    alpha = Counter(lora.alpha for lora in layers.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(layers),
        "rank_pattern": {
            f"^{re.escape(path)}": lora.rank for path, lora in layers.items() if lora.rank != rank
        },
        "alpha_pattern": {
            f"^{re.escape(path)}": lora.alpha
            for path, lora in layers.items()
            if lora.alpha != alpha
        },
    }


def _group(
    tensors: Mapping[str, Tensor], *, splitter: Callable[[str], tuple[str, str]]
) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, role = splitter(key)
        groups.setdefault(name, {})[role] = tensor
    return groups


def _split_kohya(key: str) -> tuple[str, str]:
    name, _, rest = key.partition(".")
    return name, {"lora_down.weight": "down", "lora_up.weight": "up"}.get(rest, rest)


def _split_diffusers(key: str) -> tuple[str, str]:
    for ending, role in ((".lora_A.weight", "down"), (".lora_B.weight", "up")):
        if key.endswith(ending):
            return key.removesuffix(ending), role
    return key, "unknown tensor"


def _diffusers_alphas(
    metadata: Mapping[str, str], known: Mapping[str, tuple[str, str]], source: str
) -> dict[str, float]:
    """Return the alpha of every module that the file's adapter metadata speaks of."""
    if DIFFUSERS_METADATA_KEY not in metadata:
        return {}
    try:
        config = json.loads(metadata[DIFFUSERS_METADATA_KEY])
        alphas = {}
        for name, (part, path) in known.items():
            pattern: dict[str, float] = config.get(f"{part}.alpha_pattern") or {}
            default = config.get(f"{part}.lora_alpha")
            alpha = pattern.get(get_pattern_key(list(pattern), path), default)
            if alpha is not None:
                alphas[name] = float(alpha)
    except (ValueError, TypeError, AttributeError, re.error) as error:
        text = f"{source} has an unreadable {DIFFUSERS_METADATA_KEY} in its metadata: {error}."
        raise AdapterError(Problem(source, text)) from error
    return alphas


def _unknown(name: str, known: Mapping[str, tuple[str, str]], source: str) -> Problem:
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    hint = f"; nearest: {nearest[0]}" if nearest else ""
    return Problem(source, f"{source} adapts {name}, which the model does not have{hint}.")


def _read_pair(
    name: str, group: Mapping[str, Tensor], shape: Sequence[int], alpha: float | None, source: str
) -> LoraWeights:
    """Check one module's tensors; 1x1 convolutions and linear layers may stand for each other."""
    problems = []
    missing = [role for role in ("down", "up") if role not in group]
    extra = [role for role in group if role not in ("down", "up", "alpha")]
    if missing:
        problems.append(f"{source} lacks the {' and '.join(missing)} factor of {name}")
    if extra:
        problems.append(f"{source} has {', '.join(extra)} for {name}, which is not read yet")
    if problems:
        raise AdapterError(*(Problem(source, f"{text}.") for text in problems))

    down, up = group["down"], group["up"]
    rank = down.shape[0] if down.dim() else 0
    down_shape, up_shape = (rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2))
    for role, tensor, wanted in (("down", down, down_shape), ("up", up, up_shape)):
        if rank == 0 or _squeezed(tensor.shape) != _squeezed(wanted):
            problems.append(
                f"{source} has a {role} factor of shape {tuple(tensor.shape)} for {name}; "
                f"it must be {tuple(wanted)}"
            )
    alpha = float(rank) if alpha is None else alpha
    if not (math.isfinite(alpha) and alpha > 0):
        problems.append(f"{source} has alpha {alpha:g} for {name}; it must be a positive number")
    if problems:
        raise AdapterError(*(Problem(source, f"{text}.") for text in problems))
    return LoraWeights(down.reshape(down_shape), up.reshape(up_shape), alpha)


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Drop the trailing 1 x 1 of a convolution's factor."""
    sizes = tuple(shape)
    return sizes[:2] if sizes[2:] == (1, 1) else sizes

"""Whether an adapter belongs on a model, and putting it there."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping

import torch
from peft.tuners.lokr import LoKrLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from loralab.adapters.layers import (
    ADAPTER_NAME,
    adaptable_modules,
    adapter_layers,
    adapter_parameters,
    layer_weights,
)
from loralab.adapters.layouts import Adapter, live_name
from loralab.adapters.names import ModuleName
from loralab.adapters.plan import LayerPlan
from loralab.adapters.weights import DORA, DOWN, UP, ModuleWeights
from loralab.errors import AdapterError, Problem

Fitted = dict[str, dict[str, ModuleWeights]]
ALGORITHM_OF_KIND = {"tucker": "lora", "dylora": "lora"}


def fit(adapter: Adapter, parts: Mapping[str, nn.Module], *, source: str) -> Fitted:
    """Return an adapter's modules by part and live path, checked against the model.

    Args:
        adapter: The modules of a file.
        parts: The model's parts by name; they may be on meta and need no adapter.
        source: The file's name, for the messages.

    Raises:
        AdapterError: Modules that the model does not have, or of another shape; all named.
    """
    known = {
        live_name(part, path): (path, layer.weight)
        for part, module in parts.items()
        for path, layer in adaptable_modules(module)
    }
    fitted: Fitted = {part: {} for part in parts}
    problems = []
    for name, weights in adapter.items():
        if name not in known:
            problems.append(_unknown(name, known, source))
            continue
        path, base = known[name]
        assert isinstance(base, Tensor)
        try:
            fitted[name.part][path] = _shaped(name, weights, base.shape, source)
        except AdapterError as error:
            problems += error.problems
    if problems:
        raise AdapterError(*problems)
    return fitted


def plan_problems(
    fitted: Fitted, plans: Mapping[str, Mapping[str, LayerPlan]], *, kind: str, source: str
) -> list[Problem]:
    """Return what keeps a run with these plans from starting at a file: every difference.

    Args:
        fitted: The file's modules on the model's parts.
        plans: The run's modules by part.
        kind: The run's kind.
        source: The file's name, for the messages.
    """
    texts = []
    different: dict[tuple[str, str, object, object], list[str]] = {}
    for part in sorted(plans.keys() | fitted.keys()):
        planned, found = plans.get(part, {}), fitted.get(part, {})
        for path in planned.keys() - found.keys():
            texts.append(f"{source} has nothing for {part}.{path}, which this run adapts")
        for path in found.keys() - planned.keys():
            texts.append(f"{source} adapts {part}.{path}, which this run does not")
        for path in sorted(planned.keys() & found.keys()):
            if (difference := _difference(found[path], planned[path], kind)) is not None:
                different.setdefault((part, *difference), []).append(path)
    for (part, word, one, other), paths in different.items():
        more = f" and {len(paths) - 1} others of {part}" if len(paths) > 1 else ""
        texts.append(f"{source} has {word} {one} for {part}.{paths[0]}{more}, but the run {other}")
    advice = "change the adapter's settings, or set adapter.rank_from_file=true for rank and alpha"
    return [Problem("adapter.init_from", f"{text}; {advice}.") for text in sorted(texts)]


def _difference(
    stored: ModuleWeights, plan: LayerPlan, kind: str
) -> tuple[str, object, object] | None:
    """Return (word, the file's value, the run's) of the first setting that differs."""
    settings = (
        ("kind", _kind(stored), ALGORITHM_OF_KIND.get(kind, kind)),
        ("rank", stored.rank, plan.rank if stored.rank else None),
        ("alpha", *_alphas(stored, plan)),
    )
    return next(((word, one, other) for word, one, other in settings if one != other), None)


def load_weights(fitted: Fitted, parts: Mapping[str, nn.Module], *, source: str) -> None:
    """Copy an adapter onto the injected layers of a model; nothing is copied unless all fits.

    Raises:
        AdapterError: Modules or shapes differ; all named.
    """
    pairs, problems = [], []
    for part, module in parts.items():
        layers, found = adapter_layers(module), fitted.get(part, {})
        for path in sorted(layers.keys() ^ found.keys()):
            problems.append(f"{source} and the run do not both have {part}.{path}")
        for path in layers.keys() & found.keys():
            live, stored = layer_weights(layers[path]), found[path]
            shapes = [{k: tuple(t.shape) for k, t in w.tensors.items()} for w in (stored, live)]
            if shapes[0] != shapes[1]:
                problems.append(f"{source} has {shapes[0]} for {part}.{path}, not {shapes[1]}")
            pairs.append((layers[path], stored))
    if problems:
        raise AdapterError(*(Problem("adapter.init_from", f"{text}.") for text in problems))
    with torch.no_grad():
        for layer, stored in pairs:
            _copy(layer, stored)


def _alphas(stored: ModuleWeights, plan: LayerPlan) -> tuple[str, str]:
    """Return both alphas as text, alike where half precision explains the difference."""
    if stored.rank is None or math.isclose(stored.alpha, plan.alpha, rel_tol=5e-3):
        return "", ""
    return f"{stored.alpha:g}", f"{plan.alpha:g}"


def _kind(weights: ModuleWeights) -> str:
    return "dora" if DORA in weights.tensors else weights.algorithm


def _copy(layer: BaseTunerLayer, stored: ModuleWeights) -> None:
    tensors = dict(stored.tensors)
    if isinstance(layer, LoKrLayer) and {"lokr_w1", "lokr_w2"} <= tensors.keys():
        tensors["lokr_w1"] = tensors["lokr_w1"] / layer.scaling[ADAPTER_NAME]
    if DOWN in tensors:  # PEFT names these three otherwise
        tensors |= {"lora_A.weight": tensors[DOWN], "lora_B.weight": tensors[UP]}
        if DORA in tensors:
            tensors["lora_magnitude_vector.weight"] = tensors[DORA]
    for name, parameter in adapter_parameters(layer):
        value = tensors.get(name, tensors.get(name.removeprefix("lycoris.")))
        if value is None:  # DyLoRA keeps one parameter a rank
            _, holder, number = name.rsplit(".", 2)
            place = int(number)
            value = tensors[UP][:, place] if holder == "up_list" else tensors[DOWN][place]
        parameter.copy_(value.reshape(parameter.shape))


def _unknown(name: ModuleName, known: Mapping[ModuleName, object], source: str) -> Problem:
    nearest = difflib.get_close_matches(str(name), [str(n) for n in known], n=1, cutoff=0.0)
    hint = f"; nearest: {nearest[0]}" if nearest else ""
    return Problem(source, f"{source} adapts {name}, which the model does not have{hint}.")


def _shaped(
    name: ModuleName, weights: ModuleWeights, shape: torch.Size, source: str
) -> ModuleWeights:
    """Check shapes; 1x1 convolutions and linear layers may stand for each other."""
    if weights.algorithm == "lora" and len(weights.tensors.keys() & {DOWN, UP, DORA}) == len(
        weights.tensors
    ):
        return _shaped_lora(name, weights, shape, source)
    try:
        meta = {role: t.to("meta") for role, t in weights.tensors.items()}
        ModuleWeights(meta, weights.alpha).delta(torch.empty(shape, device="meta"))
    except AdapterError as error:
        text = f"{source} does not fit {name}: {error.problems[0]}."
        raise AdapterError(Problem(source, text)) from error
    return weights


def _shaped_lora(
    name: ModuleName, weights: ModuleWeights, shape: torch.Size, source: str
) -> ModuleWeights:
    down, up, rank = weights.down, weights.up, weights.rank or 0
    wanted = {DOWN: (rank, *shape[1:]), UP: (shape[0], rank, *[1] * (len(shape) - 2))}
    problems = [
        Problem(
            source,
            f"{source} has a {word} factor of shape {tuple(tensor.shape)} for {name}; "
            f"it must be {wanted[role]}.",
        )
        for role, word, tensor in ((DOWN, "down", down), (UP, "up", up))
        if rank == 0 or _squeezed(tensor.shape) != _squeezed(wanted[role])
    ]
    if problems:
        raise AdapterError(*problems)
    tensors = {role: weights.tensors[role].reshape(size) for role, size in wanted.items()}
    if DORA in weights.tensors:
        magnitude = weights.tensors[DORA]
        if magnitude.numel() not in (shape[0], shape[1]):
            text = f"{source} has {magnitude.numel()} magnitudes for {name}; it must be {shape[0]}."
            raise AdapterError(Problem(source, text))
        if magnitude.numel() == shape[0] and (magnitude.shape[0] != 1 or magnitude.dim() == 4):
            magnitude = magnitude.reshape(-1, *[1] * (len(shape) - 1))
        tensors[DORA] = magnitude
    return ModuleWeights(tensors, weights.alpha)


def _squeezed(shape: tuple[int, ...] | torch.Size) -> tuple[int, ...]:
    """Drop the trailing 1 x 1 of a convolution's factor."""
    sizes = tuple(shape)
    return sizes[:2] if sizes[2:] == (1, 1) else sizes

"""Adapter files of a live model: write, read back, prove that the file is the trained adapter.

The mapping to names is in ``layouts.py``, the bytes are in ``container.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from loralab.adapters import container
from loralab.adapters.container import LazyTensor
from loralab.adapters.fit import fit
from loralab.adapters.layers import adapter_layers, base_weight, layer_weights, live_delta
from loralab.adapters.layouts import (
    DIFFUSERS_METADATA_KEY,
    LAYOUTS,
    Adapter,
    live_name,
    pack_diffusers,
    pack_kohya,
)
from loralab.adapters.names import SD1_PREFIXES, ModuleName
from loralab.adapters.reader import read_modules
from loralab.adapters.state import product_square
from loralab.adapters.stream import not_finite
from loralab.adapters.weights import DORA, ModuleWeights
from loralab.errors import AdapterError, Collector, Problem

# Largest relative difference of a module's update that the file's dtype explains: rounding of
# all factors and of alpha, with room for small values in float16.
TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float32: 1e-6,
    torch.float16: 1e-2,
    torch.bfloat16: 2e-2,
}


def live_adapter(parts: Mapping[str, nn.Module]) -> dict[ModuleName, ModuleWeights]:
    """Return what a file would hold of the adapters of all parts."""
    return {
        live_name(part, path): layer_weights(layer)
        for part, module in parts.items()
        for path, layer in adapter_layers(module).items()
    }


def write_adapter(
    path: Path,
    parts: Mapping[str, nn.Module],
    *,
    layout: str,
    dtype: torch.dtype,
    metadata: Mapping[str, str],
    prefixes: Mapping[str, str] = SD1_PREFIXES,
) -> None:
    """Write the adapters of all parts to one file, or leave the old file as it was.

    Args:
        path: Its suffix chooses the container: .safetensors, or .ckpt, .pt or .bin.
        parts: The model's parts by name; parts without an adapter are passed over.
        layout: ``kohya`` or ``diffusers``.
        dtype: float32, float16 or bfloat16, of every tensor including alpha.
        metadata: Written as given; the layout adds its own keys.
        prefixes: Kohya's prefix of each part.

    Raises:
        AdapterError: Unknown layout or dtype, values that are not finite in that dtype, or a
            file system that refuses.
    """
    adapter = live_adapter(parts)
    assert adapter, "no part has an adapter"
    write_weights(path, adapter, layout=layout, dtype=dtype, metadata=metadata, prefixes=prefixes)


def write_weights(
    path: Path,
    adapter: Adapter,
    *,
    layout: str,
    dtype: torch.dtype,
    metadata: Mapping[str, str],
    prefixes: Mapping[str, str],
) -> None:
    """Write an adapter that is no longer, or never was, on a model; as ``write_adapter``."""
    path = Path(path)
    if layout not in LAYOUTS:
        text = f"export.layouts holds {layout!r}; it must be one of {', '.join(LAYOUTS)}."
        raise AdapterError(Problem("export.layouts", text))
    if dtype not in TOLERANCES:
        allowed = ", ".join(map(dtype_name, TOLERANCES))
        text = f"export.precision is {dtype_name(dtype)}; it must be one of {allowed}."
        raise AdapterError(Problem("export.precision", text))
    if layout == "kohya":
        tensors = pack_kohya(adapter, prefixes)
        metadata = {k: v for k, v in metadata.items() if k != DIFFUSERS_METADATA_KEY}
    else:
        tensors, added = pack_diffusers(adapter)
        metadata = {**metadata, **added}
    cast = _cast(tensors, dtype)
    _refuse_overflow(cast, dtype)
    container.write(path, cast, metadata, with_hashes=layout == "kohya")


def parse_adapter(
    path: Path, parts: Mapping[str, nn.Module]
) -> dict[str, dict[str, ModuleWeights]]:
    """Return a file's weights by part and live path, whichever layout it has.

    Raises:
        AdapterError: The file cannot be read, or does not fit the parts; every key is named.
    """
    adapter, problems = read_modules(path)
    fitted = Collector(problems)(fit, adapter, parts, source=str(path))
    if problems or fitted is None:
        raise AdapterError(*problems)
    return fitted


def verify_file(path: Path, parts: Mapping[str, nn.Module]) -> float:
    """Return the largest relative difference of a module's update between file and live adapter.

    The difference is ||file - live|| / ||live|| of the updates (Frobenius). The live update is
    what the library computes with, the file's is what our reading of its tensors means.

    Raises:
        AdapterError: Modules are missing from the file or unknown to the model, or differ by more
            than the file's dtype explains; all of them are named.
    """
    stored = parse_adapter(path, parts)
    problems = []
    largest = 0.0
    for part, module in parts.items():
        layers, found = adapter_layers(module), stored[part]
        for name in sorted(layers.keys() ^ found.keys()):
            where = "the file" if name in layers else "the live adapter"
            problems.append(f"{part}.{name} is missing from {where}")
        for name in sorted(layers.keys() & found.keys()):
            difference = _difference(found[name], layers[name])
            largest = max(largest, difference)
            dtype = _dtype_of(found[name])
            allowed = TOLERANCES.get(dtype, 0.0)
            if not difference <= allowed:
                problems.append(
                    f"{part}.{name} differs by {difference:.1e} of its size, "
                    f"where {dtype_name(dtype)} allows {allowed:.0e}"
                )
    if problems:
        advice = "write it again, in float32 if the values are very small"
        raise AdapterError(
            *(
                Problem(str(path), f"{path} is not the trained adapter: {text}; {advice}.")
                for text in problems
            )
        )
    return largest


def loading_limits(parts: Mapping[str, nn.Module], *, layout: str) -> list[str]:
    """Return what diffusers 0.42 will not load of a right file, one sentence each.

    Its reader guesses the dialect of a CLIP text encoder's keys from the modules that are present,
    and it reads DoRA and the kinds of LyCORIS not at all from kohya files. Other programs are not
    concerned, and neither is ``verify_file``.
    """
    limits = list(_kind_limits(parts, layout))
    for part, module in parts.items():
        if not part.startswith("text_encoder"):
            continue
        layers = adapter_layers(module)
        attention = [name for name in layers if ".self_attn." in name]
        other = [name for name in layers if ".mlp." in name]
        has_output = any(name.endswith(".out_proj") for name in attention)
        if layout == "kohya" and attention and not has_output:
            limits.append(
                f"{part} has attention modules but no out_proj: diffusers does not load them "
                "from the kohya layout. Add out_proj to its targets or use the diffusers layout."
            )
        if layout == "diffusers" and other and not attention:
            limits.append(
                f"{part} has only mlp modules: diffusers does not load them from its own layout. "
                "Add an attention module to its targets or use the kohya layout."
            )
    return limits


def _kind_limits(parts: Mapping[str, nn.Module], layout: str) -> Iterator[str]:
    adapter = live_adapter(parts)
    if any(weights.algorithm != "lora" or len(weights.tensors) > 3 for weights in adapter.values()):
        yield "diffusers reads LoRA and DoRA only; load this kind with LyCORIS or PEFT."
    elif layout == "kohya" and not all(weights.is_plain for weights in adapter.values()):
        yield "diffusers drops what is beyond plain LoRA in kohya files; use the diffusers layout."


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, LazyTensor]:
    """Return the tensors in the file's dtype on the CPU, each made when it is written."""

    def load(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", dtype).contiguous()

    return {
        key: LazyTensor(tuple(tensor.shape), dtype, partial(load, tensor))
        for key, tensor in tensors.items()
    }


def _refuse_overflow(tensors: Mapping[str, LazyTensor], dtype: torch.dtype) -> None:
    """Refuse values that are not finite in the file's dtype."""
    problems = [
        not_finite(key, dtype)
        for key, tensor in tensors.items()
        if not bool(tensor.load().isfinite().all())
    ]
    if problems:
        raise AdapterError(*problems)


def _difference(stored: ModuleWeights, layer: BaseTunerLayer) -> float:
    """Return ||file - live|| / ||live|| of one module's update."""
    live = layer_weights(layer)
    if live.is_plain and stored.is_plain:
        return _factor_difference(stored, live)
    weight = base_weight(layer)
    expected = live_delta(layer)
    delta = stored.delta(weight.float()).to(expected.device)
    rounding = 1e-6
    if DORA not in live.tensors:
        return _ratio(delta - expected, expected, rounding * weight)
    # Rounded magnitudes move the whole weight, which may be more than a young update.
    rounding = max(rounding, torch.finfo(_dtype_of(stored)).eps / 2)
    return max(
        _factor_difference(_without_magnitude(stored), _without_magnitude(live)),
        _ratio(delta - expected, expected, rounding * weight),
    )


def _without_magnitude(weights: ModuleWeights) -> ModuleWeights:
    tensors = {name: tensor for name, tensor in weights.tensors.items() if name != DORA}
    return ModuleWeights(tensors, weights.alpha)


def _dtype_of(weights: ModuleWeights) -> torch.dtype:
    return next(iter(weights.tensors.values())).dtype


def _factor_difference(stored: ModuleWeights, live: ModuleWeights) -> float:
    """Return ||stored - live|| / ||live|| of two plain LoRAs.

    B'A' - BA = (B' - B) A' + B (A' - A) is one product of the pieces side by side, so that equal
    factors give exactly zero and nothing cancels.
    """
    if stored.rank != live.rank:
        return math.inf
    up_stored, down_stored = stored.factors(torch.float64)
    up_live, down_live = (factor.cpu() for factor in live.factors(torch.float64))
    square = product_square(
        torch.cat([up_stored - up_live, up_live], dim=1),
        torch.cat([down_stored, down_stored - down_live]),
    )
    size = float(product_square(up_live, down_live).sqrt())
    difference = float(square.sqrt())
    return difference / size if size else (math.inf if difference else 0.0)


def _ratio(difference: Tensor, expected: Tensor, rounding: Tensor) -> float:
    """Return ||difference|| / ||expected||, less the rounding of sums with the base's weight."""
    allowed = float(rounding.double().norm())
    size, error = float(expected.double().norm()), float(difference.double().norm()) - allowed
    return 0.0 if error <= 0 else error / size if size else math.inf


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name without the library's."""
    return str(dtype).removeprefix("torch.")

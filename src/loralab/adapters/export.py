"""Adapter files: write, read back, prove that the file is the trained adapter.

The mapping to names is in ``layouts.py``, the bytes are in ``container.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from loralab.adapters import container
from loralab.adapters.kohya import SD1_PREFIXES, kohya_names
from loralab.adapters.layers import LoraWeights, lora_weights
from loralab.adapters.layouts import PartWeights, pack_diffusers, pack_kohya, unpack
from loralab.adapters.state import product_square
from loralab.errors import AdapterError, Problem

LAYOUTS = ("kohya", "diffusers")

# Largest relative difference of a module's update that the file's dtype explains: rounding of
# both factors and of alpha, with room for small values in float16.
TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float32: 1e-6,
    torch.float16: 1e-2,
    torch.bfloat16: 2e-2,
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
    """Write the adapters of all parts to one safetensors file, or leave the old file as it was.

    Args:
        parts: The model's parts by name; parts without an adapter are passed over.
        layout: ``kohya`` or ``diffusers``.
        dtype: float32, float16 or bfloat16, of every tensor including alpha.
        metadata: Written as given; the layout adds its own keys.
        prefixes: Kohya's prefix of each part.

    Raises:
        AdapterError: Unknown layout or dtype, values that are not finite in that dtype, or a
            file system that refuses.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        text = f"export.layouts holds {layout!r}; it must be one of {', '.join(LAYOUTS)}."
        raise AdapterError(Problem("export.layouts", text))
    if dtype not in TOLERANCES:
        allowed = ", ".join(map(_dtype_name, TOLERANCES))
        text = f"export.precision is {_dtype_name(dtype)}; it must be one of {allowed}."
        raise AdapterError(Problem("export.precision", text))
    weights = _live_weights(parts)
    added: dict[str, str] = {}
    if layout == "kohya":
        names = {part: kohya_names(parts[part], prefixes[part]) for part in weights}
        tensors = pack_kohya(weights, names)
    else:
        tensors, added = pack_diffusers(weights)
    data = container.serialize(
        _cast(tensors, dtype), {**metadata, **added}, with_hashes=layout == "kohya"
    )
    container.write_atomically(path, data)


def read_adapter(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of an adapter file, as they are in it.

    Raises:
        AdapterError: The file is missing, truncated or no safetensors file.
    """
    return container.read(Path(path))


def parse_adapter(
    path: Path, parts: Mapping[str, nn.Module], *, prefixes: Mapping[str, str] = SD1_PREFIXES
) -> dict[str, PartWeights]:
    """Return a file's factors by part and module, whichever of the two layouts it has.

    Raises:
        AdapterError: The file cannot be read, or does not fit the parts; every key is named.
    """
    tensors, metadata = read_adapter(path)
    return unpack(tensors, metadata, parts, prefixes=prefixes, source=str(path))


def verify_file(
    path: Path, parts: Mapping[str, nn.Module], *, prefixes: Mapping[str, str] = SD1_PREFIXES
) -> float:
    """Return the largest relative difference of a module's update between file and live adapter.

    The difference is ||file - live|| / ||live|| of the updates alpha / rank * up @ down
    (Frobenius, in float64).

    Raises:
        AdapterError: Modules are missing from the file or unknown to the model, or differ by more
            than the file's dtype explains; all of them are named.
    """
    live = _live_weights(parts)
    stored = parse_adapter(path, parts, prefixes=prefixes)
    problems = []
    largest = 0.0
    for part in parts:
        expected, found = live.get(part, {}), stored[part]
        for name in sorted(expected.keys() ^ found.keys()):
            where = "the file" if name in expected else "the live adapter"
            problems.append(f"{part}.{name} is missing from {where}")
        for name in sorted(expected.keys() & found.keys()):
            difference = _relative_difference(found[name], expected[name])
            largest = max(largest, difference)
            dtype = found[name].down.dtype
            allowed = TOLERANCES.get(dtype, 0.0)
            if not difference <= allowed:
                problems.append(
                    f"{part}.{name} differs by {difference:.1e} of its size, "
                    f"where {_dtype_name(dtype)} allows {allowed:.0e}"
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

    Its reader guesses the dialect of a CLIP text encoder's keys from the modules that are present.
    Other programs are not concerned, and neither is ``verify_file``.
    """
    limits = []
    for part, layers in _live_weights(parts).items():
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


def _live_weights(parts: Mapping[str, nn.Module]) -> dict[str, PartWeights]:
    weights = {part: lora_weights(module) for part, module in parts.items()}
    weights = {part: layers for part, layers in weights.items() if layers}
    assert weights, "no part has an adapter"
    return weights


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Copy to the CPU in the file's dtype; refuse what is not finite there."""
    cast = {
        key: tensor.detach().to("cpu", dtype, copy=True).contiguous()
        for key, tensor in tensors.items()
    }
    problems = [
        Problem(key, f"{key} is not finite in {_dtype_name(dtype)}; nothing was written.")
        for key, tensor in cast.items()
        if not bool(tensor.isfinite().all())
    ]
    if problems:
        raise AdapterError(*problems)
    return cast


def _relative_difference(stored: LoraWeights, live: LoraWeights) -> float:
    """Return ||stored - live|| / ||live||; infinite if only the live update is zero.

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


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""What `loralab` does with adapter files: look, convert, merge, resize.

Files are read and written module by module; what is kept in memory is the module at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from loralab.adapters.edit import concatenate, merge_to_rank, resize
from loralab.adapters.names import ModuleName
from loralab.adapters.reader import AdapterFile, open_adapter, parse_metadata
from loralab.adapters.sizes import norms
from loralab.adapters.stream import AdapterStream
from loralab.adapters.weights import DORA, ModuleWeights
from loralab.app.target import Target, size_fields
from loralab.errors import AdapterError, Problem

CONTEXT_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
# What a merged file may say of its base, where all files say the same.
_BASE_FIELDS = (
    "ss_v2", "ss_base_model_version", "ss_sd_model_name", "ss_sd_model_hash",
    "ss_new_sd_model_hash", "ss_clip_skip", "ss_network_module", "modelspec.sai_model_spec",
    "modelspec.architecture", "modelspec.implementation", "modelspec.prediction_type",
    "modelspec.resolution", "modelspec.encoder_layer",
)  # fmt: skip


def inspect(path: Path) -> dict[str, Any]:
    """Return what a file holds: kind, ranks, alphas and norms of its modules, its metadata."""
    with open_adapter(path) as file:
        return {
            "file": str(path),
            "family": family_of(file),
            "modules": [_row(name, weights) for name, weights in _modules(file)],
            "metadata": parse_metadata(file.metadata),
        }


def _row(name: ModuleName, weights: ModuleWeights) -> dict[str, Any]:
    is_rotation = weights.algorithm in ("oft", "boft")
    frobenius, spectral = norms(weights)
    return {
        "module": str(name),
        "kind": "dora" if DORA in weights.tensors else weights.algorithm,
        "rank": weights.rank,
        "alpha": weights.alpha,
        "norm": frobenius,
        "spectral_norm": spectral,
        "needs_base": is_rotation or DORA in weights.tensors,
        "dtype": str(next(iter(weights.tensors.values())).dtype).removeprefix("torch."),
    }


def family_of(file: AdapterFile) -> str:
    """Return sd1, sd2 or sdxl: as the metadata says, else by names and widths."""
    version = file.metadata.get("ss_base_model_version", "")
    for start, family in (("sdxl", "sdxl"), ("sd_v2", "sd2"), ("sd_v1", "sd1")):
        if version.startswith(start):
            return family
    spelled = [entry.spelled for entry in file.entries.values()]
    if any(
        name.part == "text_encoder_2"
        # Only SDXL stacks transformer blocks.
        or (name.part == "unet" and "transformer_blocks.1." in name.path)
        for name in file.entries
    ) or any(
        x.startswith(("lora_te1_", "lora_unet_input_blocks", "lora_unet_middle_block",
                      "lora_unet_output_blocks")) for x in spelled
    ):  # fmt: skip
        return "sdxl"
    for name, entry in file.entries.items():
        for role in ("lora_down.weight", "hada_w1_b"):
            if name.path.endswith("attn2.to_k") and role in entry.keys:
                width = file.file.shape(entry.keys[role])[1]
                return CONTEXT_WIDTHS.get(width, "sd1")
    return "sd1"


def convert(path: Path, target: Target) -> int:
    """Write a file in another layout, container or precision; return its number of modules."""
    with open_adapter(path) as file, _stream(file, target) as out:
        for name, weights in _modules(file):
            out.add(name, weights)
        out.finish(_own_metadata(file))
        return len(out.shapes)


def merge_adapters(
    paths: Sequence[Path], scales: Sequence[float], target: Target, *, rank: int | None
) -> int:
    """Write the weighted sum of adapters, exact or of a given rank; return its modules."""
    with ExitStack() as stack:
        files = [stack.enter_context(open_adapter(path)) for path in paths]
        families = [family_of(file) for file in files]
        if len(set(families)) > 1:
            found = ", ".join(f"{p} is {f}" for p, f in zip(paths, families, strict=True))
            raise AdapterError(Problem("family", f"{found}; merge adapters of one family."))
        out = stack.enter_context(_stream(files[0], target))
        for name in dict.fromkeys(name for file in files for name in file.entries):
            chosen = [(f.module(name), s) for f, s in zip(files, scales, strict=True)
                      if name in f.entries]  # fmt: skip
            weights, own = [w for w, _ in chosen], [s for _, s in chosen]
            with naming(name, paths):
                merged = (
                    concatenate(weights, own) if rank is None else merge_to_rank(weights, own, rank)
                )
            out.add(name, merged)
        shared = {
            key: value
            for key, value in files[0].metadata.items()
            if key in _BASE_FIELDS and all(f.metadata.get(key) == value for f in files)
        }
        parts = (f"{path.stem} × {scale:g}" for path, scale in zip(paths, scales, strict=True))
        merged_from = {"modelspec.merged_from": ", ".join(parts)}
        out.finish(shared | merged_from | size_fields(out.shapes))
        return len(out.shapes)


def resize_file(
    path: Path, target: Target, *, rank: int | None, energy: float | None
) -> list[dict[str, Any]]:
    """Write a file of other ranks; return a row per module."""
    rows = []
    with open_adapter(path) as file, _stream(file, target) as out:
        for name, weights in _modules(file):
            with naming(name, [path]):
                resized, kept = resize(weights, rank=rank, energy=energy)
            out.add(name, resized)
            rows.append({"module": str(name), "from": weights.rank, "to": resized.rank,
                         "energy": kept})  # fmt: skip
        out.finish(_own_metadata(file) | size_fields(out.shapes))
    return rows


def _stream(file: AdapterFile, target: Target) -> AdapterStream:
    """Return the target as a file like this one."""
    return target.stream(family=family_of(file), like=file.file.load(file.file.keys[0]).dtype)


def _own_metadata(file: AdapterFile) -> dict[str, str]:
    """Return a file's metadata without the hashes, which are of its own bytes."""
    return {k: v for k, v in file.metadata.items() if not k.startswith("sshs_")}


def _modules(file: AdapterFile) -> Iterator[tuple[ModuleName, ModuleWeights]]:
    """Yield all modules, or raise every problem of the file at once."""
    problems: list[Problem] = []
    for name in file.entries:
        try:
            weights = file.module(name)
        except AdapterError as error:
            problems += error.problems
            continue
        if not problems:
            yield name, weights
    if problems:
        raise AdapterError(*problems)


@contextmanager
def naming(name: ModuleName, paths: Sequence[Path]) -> Iterator[None]:
    """Say of which module and file a problem is."""
    try:
        yield
    except AdapterError as error:
        place = f"{name} of {', '.join(map(str, paths))}"
        texts = (f"{place}: {problem}." for problem in error.problems)
        raise AdapterError(*(Problem(place, text) for text in texts)) from error

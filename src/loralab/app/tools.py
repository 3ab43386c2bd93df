"""What `loralab` does with adapter files: look, convert, merge, extract, resize.

Files are read module by module; what is kept in memory is the output and the module at hand.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loralab.adapters.bases import PARTS, component_files, places
from loralab.adapters.container import LazyTensor, TensorFile, open_tensors, write
from loralab.adapters.edit import concatenate, factorize, resize, sum_of
from loralab.adapters.export import write_weights
from loralab.adapters.names import SD1_PREFIXES, SDXL_PREFIXES, ModuleName
from loralab.adapters.reader import AdapterFile, open_adapter, parse_metadata
from loralab.adapters.weights import DORA, ModuleWeights
from loralab.errors import AdapterError, Problem

DTYPES = {
    "fp32": torch.float32, "float": torch.float32, "32": torch.float32, "fp16": torch.float16,
    "16": torch.float16, "bf16": torch.bfloat16,
}  # fmt: skip
LAYOUTS = {"kohya": "kohya", "lycoris": "kohya", "diffusers": "diffusers"}
Adapter = dict[ModuleName, ModuleWeights]


def inspect(path: Path) -> dict[str, Any]:
    """Return what a file holds: kind, ranks, alphas and norms of its modules, its metadata."""
    rows: list[dict[str, Any]] = []
    with open_adapter(path) as file:
        for name, weights in _modules(file):
            needs_base = weights.algorithm in ("oft", "boft") or DORA in weights.tensors
            plain = {k: t for k, t in weights.tensors.items() if k != DORA}
            size = None if weights.algorithm in ("oft", "boft") else float(
                ModuleWeights(plain, weights.alpha).delta().norm()
            )  # fmt: skip
            rows.append({
                "module": str(name), "kind": "dora" if DORA in weights.tensors else
                weights.algorithm, "rank": weights.rank, "alpha": weights.alpha, "norm": size,
                "needs_base": needs_base,
                "dtype": str(next(iter(weights.tensors.values())).dtype).removeprefix("torch."),
            })  # fmt: skip
        return {
            "file": str(path),
            "family": family_of(file),
            "modules": rows,
            "metadata": parse_metadata(file.metadata),
        }


def family_of(file: AdapterFile) -> str:
    """Return sd1, sd2 or sdxl: as the metadata says, else by names and widths."""
    version = file.metadata.get("ss_base_model_version", "")
    for start, family in (("sdxl", "sdxl"), ("sd_v2", "sd2"), ("sd_v1", "sd1")):
        if version.startswith(start):
            return family
    spelled = [entry.spelled for entry in file.entries.values()]
    parts = {name.part for name in file.entries}
    if "text_encoder_2" in parts or any(
        x.startswith(("lora_te1_", "lora_unet_input_blocks", "lora_unet_middle_block",
                      "lora_unet_output_blocks")) for x in spelled
    ):  # fmt: skip
        return "sdxl"
    for name, entry in file.entries.items():
        if name.path.endswith("attn2.to_k") and "lora_down.weight" in entry.keys:
            width = file.file.shape(entry.keys["lora_down.weight"])[1]
            return {1024: "sd2", 2048: "sdxl"}.get(width, "sd1")
    return "sd1"


def convert(path: Path, out: Path, *, to: str, precision: str | None) -> int:
    """Write a file in another layout, container or precision; return its number of modules."""
    with open_adapter(path) as file:
        adapter, family, metadata = dict(_modules(file)), family_of(file), file.metadata
    _write(out, adapter, family=family, to=to, precision=precision, metadata=metadata)
    return len(adapter)


def merge_adapters(
    paths: Sequence[Path],
    scales: Sequence[float],
    out: Path,
    *,
    rank: int | None,
    to: str,
    precision: str | None,
) -> int:
    """Write the weighted sum of adapters, exact or of a given rank; return its modules."""
    merged: Adapter = {}
    with ExitStack() as stack:
        files = [stack.enter_context(open_adapter(path)) for path in paths]
        families = [family_of(file) for file in files]
        if len(set(families)) > 1:
            found = ", ".join(f"{p} is {f}" for p, f in zip(paths, families, strict=True))
            raise AdapterError(Problem("family", f"{found}; merge adapters of one family."))
        names = dict.fromkeys(name for file in files for name in file.entries)
        for name in names:
            chosen = [(f.module(name), s) for f, s in zip(files, scales, strict=True)
                      if name in f.entries]  # fmt: skip
            weights, own = [w for w, _ in chosen], [s for _, s in chosen]
            with _naming(name, paths):
                merged[name] = (
                    concatenate(weights, own)
                    if rank is None
                    else factorize(sum_of(weights, own), rank=rank)[0]
                )
    metadata = {"modelspec.merged_from": ", ".join(path.stem for path in paths)}
    _write(out, merged, family=families[0], to=to, precision=precision, metadata=metadata)
    return len(merged)


def merge_into_base(base: Path, paths: Sequence[Path], scales: Sequence[float], out: Path) -> int:
    """Write a base with the adapters' updates added; return how many modules changed.

    Raises:
        AdapterError: The base cannot be read, or an adapter has modules that it lacks; all named.
    """
    if out.exists():
        raise AdapterError(Problem(str(out), f"{out} is there already; choose another name."))
    with ExitStack() as stack:
        adapters = [stack.enter_context(open_adapter(path)) for path in paths]
        pairs = list(zip(adapters, scales, strict=True))
        sources = _sources(base)
        opened = {p: stack.enter_context(open_tensors(f)) for p, f in sources.items()}
        known = {
            place.name for part, file in opened.items() for key in file.keys
            for place in places(key, part)
        }  # fmt: skip
        missing = [
            Problem(str(path), f"{path} adapts {name}, which {base} does not have.")
            for path, adapter in zip(paths, adapters, strict=True)
            for name in adapter.entries
            if name not in known
        ]
        if missing:
            raise AdapterError(*missing)
        if base.is_dir():
            written = {str(path) for path in sources.values()}
            shutil.copytree(
                base, out, ignore=lambda d, names: [n for n in names if str(Path(d, n)) in written]
            )
        for part, file in opened.items():
            target = out if part is None else out / sources[part].relative_to(base)
            lazy = {key: _added(file, key, part, pairs) for key in file.keys}
            write(target, lazy, file.metadata, with_hashes=False)
        return len({name for adapter in adapters for name in adapter.entries})


def extract(
    base: Path, tuned: Path, out: Path, *, rank: int | None, conv_rank: int | None,
    energy: float | None, to: str, precision: str | None,
) -> tuple[int, float]:  # fmt: skip
    """Write the difference of two bases as a LoRA; return modules and the least energy kept."""
    adapter: Adapter = {}
    least = 1.0
    for name, before, after in _pairs(base, tuned):
        delta = after.float() - before.float()
        if before.dim() not in (2, 4) or float(delta.abs().max()) == 0:
            continue
        is_conv = before.dim() == 4 and before.shape[2:] != (1, 1)
        own = conv_rank if is_conv and conv_rank else rank
        adapter[name], kept = factorize(delta, rank=own, energy=energy)
        least = min(least, kept)
    if not adapter:
        text = f"{base} and {tuned} do not differ in any layer that an adapter could sit on."
        raise AdapterError(Problem(str(tuned), text))
    family = "sdxl" if any(name.part == "text_encoder_2" for name in adapter) else "sd1"
    _write(out, adapter, family=family, to=to, precision=precision, metadata={})
    return len(adapter), least


def resize_file(
    path: Path, out: Path, *, rank: int | None, energy: float | None, to: str, precision: str | None
) -> list[dict[str, Any]]:
    """Write a file of other ranks; return a row per module."""
    adapter: Adapter = {}
    rows = []
    with open_adapter(path) as file:
        family, metadata = family_of(file), file.metadata
        for name, weights in _modules(file):
            with _naming(name, [path]):
                adapter[name], kept = resize(weights, rank=rank, energy=energy)
            rows.append({"module": str(name), "from": weights.rank, "to": adapter[name].rank,
                         "energy": kept})  # fmt: skip
    _write(out, adapter, family=family, to=to, precision=precision, metadata=metadata)
    return rows


def _write(
    out: Path, adapter: Adapter, *, family: str, to: str, precision: str | None,
    metadata: Mapping[str, str],
) -> None:  # fmt: skip
    first = next(iter(next(iter(adapter.values())).tensors.values()))
    if to not in LAYOUTS:
        text = f"--to is {to}; it must be one of {', '.join(LAYOUTS)}."
        raise AdapterError(Problem("--to", text))
    if precision is not None and precision not in DTYPES:
        text = f"--precision is {precision}; it must be one of {', '.join(DTYPES)}."
        raise AdapterError(Problem("--precision", text))
    dtype = first.dtype if precision is None else DTYPES[precision]
    kept = {k: v for k, v in metadata.items() if not k.startswith("sshs_")}
    write_weights(
        out,
        adapter,
        layout=LAYOUTS[to],
        dtype=dtype,
        metadata=kept,
        prefixes=SDXL_PREFIXES if family == "sdxl" else SD1_PREFIXES,
    )


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
def _naming(name: ModuleName, paths: Sequence[Path]) -> Iterator[None]:
    """Say of which module and file a problem is."""
    try:
        yield
    except AdapterError as error:
        place = f"{name} of {', '.join(map(str, paths))}"
        texts = (f"{place}: {problem}." for problem in error.problems)
        raise AdapterError(*(Problem(place, text) for text in texts)) from error


def _added(
    file: TensorFile, key: str, part: str | None, pairs: Sequence[tuple[AdapterFile, float]]
) -> LazyTensor:
    """Return a base's tensor with every update of its modules, in its own dtype."""
    wanted = [
        (place, adapter, scale)
        for place in places(key, part)
        for adapter, scale in pairs
        if place.name in adapter.entries
    ]
    if not wanted:
        return LazyTensor(file.shape(key), file.load(key).dtype, lambda: file.load(key))

    def load() -> Tensor:
        tensor = file.load(key)
        total = tensor.to(torch.float32, copy=True)
        for place, adapter, scale in wanted:
            weight = place.of(total)
            update = adapter.module(place.name).delta(place.of(tensor).float())
            weight += scale * update
        return total.to(tensor.dtype)

    return LazyTensor(file.shape(key), file.load(key).dtype, load)


def _sources(base: Path) -> dict[str | None, Path]:
    """Return a base's files of weights by part; a single file belongs to none."""
    return dict(component_files(base).items()) if base.is_dir() else {None: base}


def _pairs(base: Path, tuned: Path) -> Iterator[tuple[ModuleName, Tensor, Tensor]]:
    """Yield every module's weight in both bases, one at a time."""
    if base.is_dir() != tuned.is_dir():
        text = f"{base} and {tuned} must both be folders or both be files."
        raise AdapterError(Problem(str(tuned), text))
    ones = _sources(base)
    others = _sources(tuned)
    for part in ones.keys() & others.keys():
        with open_tensors(ones[part]) as before, open_tensors(others[part]) as after:
            theirs = set(after.keys)
            for key in before.keys:
                found = list(places(key, part)) if key in theirs else []
                if not found:
                    continue
                one, other = before.load(key), after.load(key)
                if one.shape != other.shape:
                    text = f"{key} is {tuple(one.shape)} in {base} and {tuple(other.shape)} there."
                    raise AdapterError(Problem(str(tuned), text))
                for place in found:
                    if place.name.part in PARTS and not _is_outside(place.name):
                        yield place.name, place.of(one), place.of(other)


def _is_outside(name: ModuleName) -> bool:
    """Say whether no adapter of sd-scripts sits there: embeddings, ends of the UNet."""
    return "embedding" in name.path or name.path in ("conv_in", "conv_out", "text_projection")

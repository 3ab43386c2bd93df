"""What `loralab` does with whole models: adapters merged into one, or extracted from two."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from loralab.adapters.allocation import return_freed_blocks
from loralab.adapters.bases import PARTS, component_files, places
from loralab.adapters.container import LazyTensor, TensorFile, open_tensors, write
from loralab.adapters.edit import factorize
from loralab.adapters.names import ModuleName
from loralab.adapters.reader import AdapterFile, open_adapter
from loralab.app.metadata import ARCHITECTURES, VERSIONS
from loralab.app.target import Target, size_fields, taken_problems
from loralab.app.tools import CONTEXT_WIDTHS, naming
from loralab.errors import AdapterError, Problem


def merge_into_base(
    base: Path, paths: Sequence[Path], scales: Sequence[float], out: Path, *, overwrite: bool
) -> int:
    """Write a base with the adapters' updates added; return how many modules changed.

    Raises:
        AdapterError: The base cannot be read, or an adapter has modules that it lacks; all named.
    """
    problems = taken_problems(out, overwrite=overwrite)
    if not base.is_dir() and out.suffix != ".safetensors":
        text = f"{out} ends in {out.suffix or 'nothing'}; a merged file must end in .safetensors."
        problems.append(Problem(str(out), text))
    if problems:
        raise AdapterError(*problems)
    return_freed_blocks()
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
            problem
            for path, adapter in zip(paths, adapters, strict=True)
            for problem in _missing(path, adapter, base, known)
        ]
        if missing:
            raise AdapterError(*missing)
        with _whole(out) if base.is_dir() else nullcontext(out) as place:
            if base.is_dir():
                _copy_rest(base, place, written=sources.values())
            for part, file in opened.items():
                target = place if part is None else place / sources[part].relative_to(base)
                lazy = {key: _added(file, key, part, pairs) for key in file.keys}
                write(target, lazy, file.metadata, with_hashes=False)
        return len({name for adapter in adapters for name in adapter.entries})


def _missing(
    path: Path, adapter: AdapterFile, base: Path, known: Collection[ModuleName]
) -> Iterator[Problem]:
    """Yield one problem a part of which the adapter has modules that the base lacks."""
    for part in PARTS:
        own = [name for name in adapter.entries if name.part == part]
        lost = [name for name in own if name not in known]
        if lost:
            text = (
                f"{path} adapts {len(own)} modules of {part}, {len(lost)} of which {base} does not "
                f"have (the first is {lost[0].path}); give a base of the adapter's own family."
            )
            yield Problem(str(path), text)


def extract(
    base: Path, tuned: Path, target: Target, *, rank: int | None, conv_rank: int | None,
    energy: float | None,
) -> tuple[int, float]:  # fmt: skip
    """Write the difference of two bases as a LoRA; return modules and the least energy kept."""
    family, least = _family(tuned), 1.0
    with target.stream(family=family) as out:
        for name, before, after in _pairs(base, tuned):
            delta = after.to(torch.float32, copy=True).sub_(before)
            if before.dim() not in (2, 4) or not bool(delta.any()):
                continue
            is_conv = before.dim() == 4 and before.shape[2:] != (1, 1)
            own = conv_rank if is_conv and conv_rank else rank
            with naming(name, [base, tuned]):
                weights, kept = factorize(delta, rank=own, energy=energy)
            out.add(name, weights)
            least = min(least, kept)
        if not out.shapes:
            text = f"{base} and {tuned} do not differ in any layer that an adapter could sit on."
            raise AdapterError(Problem(str(tuned), text))
        metadata = {
            "ss_v2": str(family == "sd2"),
            "ss_base_model_version": VERSIONS[family],
            "ss_network_module": "networks.lora",
            **size_fields(out.shapes),
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": ARCHITECTURES[family],
            "modelspec.title": target.path.stem,
        }
        out.finish(metadata)
        return len(out.shapes), least


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
            with naming(place.name, [adapter.file.path]):
                weights = adapter.module(place.name)
                weights.add_to(place.of(total), place.of(tensor), strength=scale)
        merged = total.to(tensor.dtype)
        if not bool(merged.isfinite().all()):
            files = ", ".join(str(adapter.file.path) for _, adapter, _ in wanted)
            dtype = str(tensor.dtype).removeprefix("torch.")
            text = f"{key} of {file.path} with {files} is not finite in {dtype}; lower --weight."
            raise AdapterError(Problem("--weight", text))
        return merged

    return LazyTensor(file.shape(key), file.load(key).dtype, load)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which has the name when the block ends well and is gone if not."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        yield part
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _copy_rest(base: Path, out: Path, *, written: Iterable[Path]) -> None:
    """Copy what of a folder is not written anew."""
    left_out = {str(path) for path in written}
    shutil.copytree(
        base, out, ignore=lambda d, names: [n for n in names if str(Path(d, n)) in left_out]
    )


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
                    text = (
                        f"{key} is {tuple(other.shape)} in {tuned} and {tuple(one.shape)} in "
                        f"{base}; give two models of one family."
                    )
                    raise AdapterError(Problem(str(tuned), text))
                for place in found:
                    if place.name.part in PARTS and not _is_outside(place.name):
                        yield place.name, place.of(one), place.of(other)


def _family(base: Path) -> str:
    """Return sd1, sd2 or sdxl, by the names and widths of a base's weights."""
    family = "sd1"
    for part, path in _sources(base).items():
        with open_tensors(path) as file:
            for key in file.keys:
                for place in places(key, part):
                    if place.name.part == "text_encoder_2":
                        return "sdxl"
                    if place.name.part == "unet" and place.name.path.endswith("attn2.to_k"):
                        family = CONTEXT_WIDTHS.get(file.shape(key)[1], family)
    return family


def _is_outside(name: ModuleName) -> bool:
    """Say whether no adapter of sd-scripts sits there: embeddings, ends of the UNet."""
    return "embedding" in name.path or name.path in ("conv_in", "conv_out", "text_projection")

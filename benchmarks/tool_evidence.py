"""Evidence about the tools on adapter files: what they lose, what they take, what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from runs import ROOT
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(ROOT))

RANK, ALPHA = 4, 7.0
MIB = 2**20


def editing(output: Path) -> Iterator[str]:
    """Merge, extract and resize against sums by hand, on a tiny SD 1 model."""
    base, adapter = _tiny(output)
    whole = _deltas(adapter)
    merged = output / "merged"
    _loralab("merge", adapter, "--base", base, "--out", merged)
    worst = 0.0
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        before, after = (load_file(b / part / f"{stem}.safetensors") for b in (base, merged))
        for key, tensor in before.items():
            delta = whole.get(_flat(part, key), torch.zeros(()))
            exact = tensor.double() + delta.reshape(tensor.shape if delta.numel() > 1 else ())
            worst = max(worst, float((after[key] - exact).abs().max()))
    back, small = output / "back.safetensors", output / "small.safetensors"
    _loralab("extract", base, merged, back)
    _loralab("extract", base, merged, small, "--rank", RANK)
    twice = output / "twice.safetensors"
    _loralab("merge", adapter, adapter, "--weight", 0.75, "--weight", -0.25, "--out", twice)
    halves = {name: 0.5 * delta for name, delta in whole.items()}
    yield f"A tiny SD 1 model, {len(whole)} modules, rank {RANK}, alpha {ALPHA:g}, fp32 files; a"
    yield "module's error is ||found - exact|| / ||exact|| of its update, exact sums in float64.\n"
    yield "| step | figure |\n|---|---|"
    yield f"| `merge --base`: largest difference from base + update | {worst:.1e} |"
    full = _error(back, whole)
    yield f"| `extract` of the merged base at full rank: largest error | {full:.1e} |"
    yield f"| the same at `--rank {RANK}`, the adapter's own | {_error(small, whole):.1e} |"
    yield f"| `merge` with weights 0.75 and -0.25: largest error | {_error(twice, halves):.1e} |"
    yield "\n| `resize --energy` | largest error | mean rank | bytes |\n|---|---|---|---|"
    for energy in (0.3, 0.6, 0.9, 0.99, 1.0):
        out = output / f"{energy}.safetensors"
        rows = json.loads(_loralab("resize", adapter, out, "--energy", energy, "--json"))
        rank = sum(row["to"] for row in rows) / len(rows)
        yield (f"| {energy:g} | {_error(out, whole):.1e} | {rank:.1f} | {out.stat().st_size:,} |")


def memory(output: Path) -> Iterator[str]:
    """Peak anonymous memory of the tools on files of SD 1.5's size."""
    from loralab.adapters.container import LazyTensor, write
    from tests.adapters.key_rules import expected, networks

    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(2**20, generator=generator).mul(0.02).half()  # repeated: numbers are cheap

    def lazy(shape: tuple[int, ...]) -> LazyTensor:
        count = torch.Size(shape).numel()

        def load() -> Tensor:
            return pool.repeat(count // len(pool) + 1)[:count].reshape(shape)

        return LazyTensor(shape, torch.float16, load)

    base, largest = output / "base", 0
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        shapes = {key: tuple(t.shape) for key, t in networks("sd1")[part].state_dict().items()}
        largest = max(largest, *(2 * torch.Size(shape).numel() for shape in shapes.values()))
        place = base / part / f"{stem}.safetensors"
        write(place, {k: lazy(s) for k, s in shapes.items()}, {}, with_hashes=False)
    adapter = output / "adapter.safetensors"
    tensors = {
        key: lazy(shape).load() if shape else torch.tensor(32.0).half()
        for key, shape in expected("sd1", has_conv=False, rank=64).items()
    }
    save_file(tensors, adapter)
    first = sorted(tensors)[0].split(".")[0]
    one = {key: tensor for key, tensor in tensors.items() if key.startswith(f"{first}.")}
    save_file(one, output / "one.safetensors")
    floor, _ = _peak("resize", output / "one.safetensors", output / "out.safetensors",
                     "--rank", 16, "--json")  # fmt: skip
    yield f"Random fp16 files of SD 1.5's size: a base of {_size(base) / MIB:,.0f} MiB, its"
    yield f"largest tensor {largest / MIB:.0f} MiB, an adapter of rank 64 of"
    yield f"{_size(adapter) / MIB:.0f} MiB."
    yield "Peak of `RssAnon` of a new process, read every 5 ms. `resize` of a file with one module"
    yield f"takes {floor / MIB:.0f} MiB: the imports.\n"
    yield "| command | peak MiB | above that | output MiB | 4 × largest tensor + output | s |"
    yield "|---|---|---|---|---|---|"
    commands = {
        "resize --rank 16": ("resize", adapter, output / "small.safetensors", "--rank", 16,
                             "--json"),
        "merge --base": ("merge", adapter, "--base", base, "--out", output / "merged"),
        "merge": ("merge", adapter, adapter, "--out", output / "sum.safetensors"),
        "convert": ("convert", adapter, output / "other.safetensors", "--to", "diffusers"),
        "merge --rank 64": ("merge", adapter, adapter, "--rank", 64, "--out",
                            output / "svd.safetensors"),
    }  # fmt: skip
    biggest = max(2 * t.numel() for t in tensors.values())
    del tensors
    for name, command in commands.items():
        peak, seconds = _peak(*command)
        out = next((Path(str(a)) for a in command[2:] if Path(str(a)).parent == output
                    and Path(str(a)) not in (adapter, base)), None)  # fmt: skip
        size = 0 if out is None else _size(out)
        tensor = largest if "--base" in command else biggest
        limit = 4 * tensor + (0 if "--base" in command else size)
        figures = (f"{number / MIB:.0f}" for number in (peak, peak - floor, size, limit))
        yield f"| `{name}` | {' | '.join(figures)} | {seconds:.0f} |"
    yield "\nOutputs are written while they are made. A merged base's size is not in its limit."


def broken(output: Path) -> Iterator[str]:
    """Broken files, and the one sentence that each gets."""
    from tests.adapters.broken import BROKEN, OTHER_BASE

    base, adapter = _tiny(output)
    out = output / "out.safetensors"
    cases = [
        (which, output / name, damage, ("convert", output / name, out, "--to", "diffusers"))
        for which, (name, damage, _) in BROKEN.items()
    ] + [
        (which, output / "a.safetensors", damage,
         ("merge", output / "a.safetensors", "--base", base, "--out", output / "merged"))
        for which, (damage, _) in OTHER_BASE.items()
    ]  # fmt: skip
    yield "| file | command | answer | s |\n|---|---|---|---|"
    for which, path, damage, command in cases:
        path.unlink(missing_ok=True)
        damage(adapter, path)
        started = time.perf_counter()
        done = _run(*command)
        seconds = time.perf_counter() - started
        text = done.stdout + done.stderr
        answers = [line[4:] for line in text.splitlines() if line.startswith("  - ")]
        if done.returncode != 2 or "Traceback" in text or len(answers) != 1 or out.exists():
            raise SystemExit(f"{which} was not refused properly:\n{text}")
        answer = answers[0].replace(str(output), "…").replace("|", "\\|")
        yield f"| {which} | `{command[0]}` | {answer} | {seconds:.1f} |"


def _tiny(output: Path) -> tuple[Path, Path]:
    """Write a tiny SD 1 folder and a random adapter of all its layers."""
    from loralab.adapters.export import write_adapter
    from loralab.adapters.inject import inject
    from loralab.adapters.spec import AdapterSpec
    from tests.adapters.adapted import SD_SCRIPTS_TEXT_ENCODER, randomize
    from tests.adapters.reloading import UNET_TARGETS, load, parts_of
    from tests.tiny import make_tiny_sd1

    base, adapter = make_tiny_sd1(output / "base"), output / "adapter.safetensors"
    parts = parts_of(load(base, "sd1"))
    for name, module in parts.items():
        targets = UNET_TARGETS if name == "unet" else SD_SCRIPTS_TEXT_ENCODER
        inject(module, AdapterSpec("lora", RANK, ALPHA, 0.0, targets), part=name)
        randomize(module)
    write_adapter(adapter, parts, layout="kohya", dtype=torch.float32, metadata={})
    return base, adapter


def _flat(part: str, key: str) -> str:
    path = key.removesuffix(".weight").removeprefix("text_model.")
    prefix = "lora_unet_" if part == "unet" else "lora_te_text_model_"
    return prefix + path.replace(".", "_")


def _deltas(path: Path) -> dict[str, Tensor]:
    """Return every module's update by hand: alpha / rank * up @ down, (out, in * kh * kw)."""
    tensors, found = load_file(path), {}
    for key in tensors:
        if key.endswith(".lora_down.weight"):
            name = key.removesuffix(".lora_down.weight")
            down, up = tensors[key].double(), tensors[f"{name}.lora_up.weight"].double()
            scale = float(tensors[f"{name}.alpha"]) / len(down)
            found[name] = up.flatten(1) @ down.flatten(1) * scale
    return found


def _error(path: Path, exact: dict[str, Tensor]) -> float:
    found = _deltas(path)
    assert found.keys() == exact.keys()
    return max(float((found[n] - exact[n]).norm() / exact[n].norm()) for n in exact)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _command(*arguments: object) -> list[str]:
    return [str(Path(sys.executable).parent / "loralab"), *map(str, arguments)]


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False
    )


def _loralab(*arguments: object) -> str:
    done = _run(*arguments)
    if done.returncode != 0:
        raise SystemExit(f"{arguments}\n{done.stdout}{done.stderr}")
    return done.stdout


def _peak(*arguments: object) -> tuple[int, float]:
    """Return the largest RssAnon of a command in bytes, and its seconds."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(_command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                break
            for line in status.splitlines():
                if line.startswith("RssAnon:"):
                    peak = max(peak, 1024 * int(line.split()[1]))
            time.sleep(0.005)
    if process.returncode != 0:
        raise SystemExit(f"{arguments} ended with {process.returncode}")
    return peak, time.perf_counter() - started

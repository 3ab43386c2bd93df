"""Evidence about adapter files: read by other programs, named by the rules, edited exactly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import torch
from runs import ROOT, only_run, train
from safetensors import safe_open
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(ROOT))


def reloading(output: Path) -> Iterator[str]:
    """Every kind, family and naming, read by a program that is not ours."""
    from tests.adapters.reloading import ALPHA, RANK, cases, compare, reader

    yield f"Tiny models of each family, five steps at rank {RANK} (BOFT 8) and alpha {ALPHA:g} on"
    yield "every linear layer and convolution of UNet and text encoders, a float32 file, a fresh"
    yield "model. diffusers reads wherever it can. The figures are the largest differences of all"
    yield "outputs.\n"
    yield "| kind | family | naming | read by | file against live | live against base |"
    yield "|---|---|---|---|---|---|"
    for kind, family, layout in cases():
        error, effect = compare(kind, family, layout, output)
        row = (kind, family, layout, reader(kind, layout), f"{error:.1e}", f"{effect:.2f}")
        yield f"| {' | '.join(row)} |"


def keys(output: Path) -> Iterator[str]:
    """Files of real-size networks against the rules of sd-scripts."""
    from tests.adapters.key_rules import CONV_RANK, FAMILIES, RANK, expected, written

    yield "Rules of sd-scripts (`networks/lora.py`) by the classes that contain a layer, against a"
    yield f"file of ours in fp16. Networks have their real sizes; rank {RANK}, convolutions beyond"
    yield f"1x1 {CONV_RANK}. SDXL's UNet has 788 modules with convolutions.\n"
    yield "| family | layers | modules | keys | missing | extra | other shape | numbers |"
    yield "|---|---|---|---|---|---|---|---|"
    for family in FAMILIES:
        for has_conv in (False, True):
            rules = expected(family, has_conv=has_conv)
            found, dtypes = written(family, output, has_conv=has_conv)
            shapes = sum(found.get(key, shape) != shape for key, shape in rules.items())
            row = (
                family, "full" if has_conv else "sd_scripts", len(rules) // 3, len(found),
                len(rules.keys() - found.keys()), len(found.keys() - rules.keys()), shapes,
                ", ".join(sorted(dtypes)),
            )  # fmt: skip
            yield f"| {' | '.join(map(str, row))} |"


def metadata(output: Path) -> Iterator[str]:
    """Both hashes from the bytes, and what of the metadata comes back from another layout."""
    train(output, "preview.prompts=[]", "trainer.max_steps=20", "adapter.rank=32",
          "export.modelspec={author: Ada, license: CC0-1.0, tags: [a, b]}")  # fmt: skip
    folder = only_run(output) / "adapters"
    file, there, back = (folder / f"{name}.safetensors" for name in ("demo", "there", "back"))
    loralab("convert", file, there, "--to", "diffusers")
    loralab("convert", there, back, "--to", "kohya")
    one, other = fields_of(file), fields_of(back)
    ss = {key: value for key, value in one.items() if key.startswith("ss_")}
    bare = output / "bare.safetensors"
    save_file(load_file(file), bare, metadata=ss)
    lost = [key for key in one if other.get(key) != one[key]]
    yield f"`python train.py`, 20 steps: `{file.name}`, {file.stat().st_size:,} bytes,"
    yield f"{len(ss)} `ss_`, {sum(k.startswith('modelspec.') for k in one)} `modelspec.` and"
    yield f"{sum(k.startswith('loralab.') for k in one)} own fields.\n"
    yield "| field | in the file | from the bytes |\n|---|---|---|"
    model_hash, legacy = one["sshs_model_hash"], one["sshs_legacy_hash"]
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    yield f"| `sshs_model_hash` | {model_hash[:16]}… | {sha256(data[begin:]).hexdigest()[:16]}… |"
    piece = bare.read_bytes()[0x100000:0x110000]
    again_legacy = sha256(piece).hexdigest()[:8]
    yield f"| `sshs_legacy_hash` (safetensors' own file) | {legacy} | {again_legacy} |"
    tensors, again = load_file(file), load_file(back)
    equal = tensors.keys() == again.keys() and all(
        torch.equal(tensors[key], again[key]) for key in tensors
    )
    yield f"\nkohya to diffusers and back: {len(tensors)} tensors"
    yield f"{'equal bit for bit' if equal else 'DIFFERENT'}, {len(one) - len(lost)} of {len(one)}"
    yield f"metadata fields equal{'; others: ' + ', '.join(lost) if lost else ''}."


def loralab(*arguments: object) -> None:
    """Run the console script in a new process."""
    command = [str(Path(sys.executable).parent / "loralab"), *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def fields_of(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})

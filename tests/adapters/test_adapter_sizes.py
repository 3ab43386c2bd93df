"""Norms from factors against the whole update, and tools that never form the update."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from loralab.adapters.inject import inject
from loralab.adapters.layers import adapter_layers, layer_weights
from loralab.adapters.sizes import norms
from loralab.adapters.spec import AdapterSpec
from loralab.adapters.weights import ModuleWeights
from loralab.app import tools
from loralab.app.target import Target
from tests.adapters.adapted import randomize
from tests.adapters.reloading import UNET_TARGETS, load, parts_of
from tests.tiny import make_tiny_sd1

OUT, IN, RANK = 600, 500, 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd1(tmp_path_factory.mktemp("sizes") / "sd1")


@pytest.mark.parametrize("kind", ["lora", "tucker", "dylora", "loha", "lokr"])
def test_norms_are_those_of_the_whole_update_as_the_libraries_form_it(
    base: Path, kind: str
) -> None:
    unet = parts_of(load(base, "sd1"))["unet"]
    options = {"decompose_both": True}
    spec = AdapterSpec(kind, 4, 7.0, 0.0, UNET_TARGETS, options=options)
    inject(unet, spec, part="unet")
    randomize(unet)
    layers = adapter_layers(unet)
    assert {layer.get_base_layer().weight.dim() for layer in layers.values()} == {2, 4}
    for layer in layers.values():
        own: Any = layer
        update = own.get_delta_weight("default").detach().double().flatten(1)
        frobenius, spectral = norms(layer_weights(layer))
        assert frobenius == pytest.approx(float(torch.linalg.matrix_norm(update)), rel=1e-6)
        if kind == "loha":
            assert spectral is None
        else:
            largest = float(torch.linalg.matrix_norm(update, ord=2))
            assert spectral == pytest.approx(largest, rel=1e-6)


def test_factors_that_cancel_have_a_small_norm() -> None:
    up, down = torch.randn(OUT, 1), torch.randn(1, IN)
    tensors = {
        "lora_up.weight": torch.cat([up, -up], dim=1),
        "lora_down.weight": torch.cat([down, down * (1 + 2**-20)]),
    }
    frobenius, _ = norms(ModuleWeights(tensors, 2.0))
    whole = tensors["lora_up.weight"].double() @ tensors["lora_down.weight"].double()
    assert frobenius == pytest.approx(float(whole.norm()), rel=1e-6)


class _Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that any operation gives."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for found in result if isinstance(result, tuple | list) else (result,):
            if isinstance(found, torch.Tensor) and found.device.type != "meta":
                self.numel = max(self.numel, found.numel())
        return result


def _file(path: Path) -> Path:
    name = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {
        f"{name}.lora_down.weight": torch.randn(RANK, IN),
        f"{name}.lora_up.weight": torch.randn(OUT, RANK),
        f"{name}.alpha": torch.tensor(1.0),
    }
    save_file(tensors, path)
    return path


def _merge(rank: int | None) -> Callable[[Path, Target], object]:
    return lambda file, out: tools.merge_adapters([file, file], [0.7, 0.5], out, rank=rank)


@pytest.mark.parametrize(
    "tool",
    [
        lambda file, out: tools.inspect(file),
        tools.convert,
        lambda file, out: tools.resize_file(file, out, rank=2, energy=None),
        lambda file, out: tools.resize_file(file, out, rank=None, energy=0.9),
        _merge(None),
        _merge(RANK),
    ],
    ids=["inspect", "convert", "resize to a rank", "resize to an energy", "merge", "merge to rank"],
)
def test_no_tool_forms_the_update_of_a_lora(
    tmp_path: Path, tool: Callable[[Path, Target], object]
) -> None:
    file = _file(tmp_path / "a.safetensors")
    with _Largest() as mode:
        tool(file, Target.of(tmp_path / "out.safetensors"))
    # Factors side by side, and their bytes, which count four for one.
    assert 0 < mode.numel <= 4 * 2 * RANK * OUT < OUT * IN


def test_nothing_but_the_file_is_left_in_its_folder(tmp_path: Path) -> None:
    file = _file(tmp_path / "a.safetensors")
    _merge(None)(file, Target.of(tmp_path / "out.safetensors"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "out.safetensors"]
    assert len(load_file(tmp_path / "out.safetensors")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("rank", [None, 64], ids=["exact", "to a rank"])
def test_merging_takes_no_more_memory_than_a_module_needs(tmp_path: Path, rank: int | None) -> None:
    """80 modules of 40 MiB, an output of 40 or 80; a file of two modules shows the imports."""
    whole = _many(tmp_path / "many.safetensors", 80)
    small = _many(tmp_path / "few.safetensors", 2)
    options = [] if rank is None else ["--rank", str(rank)]
    peaks = [
        _peak("merge", file, file, "--out", tmp_path / f"out-{file.stem}.safetensors", *options)
        for file in (whole, small)
    ]
    assert peaks[0] - peaks[1] < 24 * 2**20, "less than the output alone"


def _many(path: Path, count: int) -> Path:
    generator, tensors = torch.Generator().manual_seed(0), {}
    for number in range(count):
        name = f"lora_te_text_model_encoder_layers_{number}_mlp_fc1"
        down, up = torch.randn(64, 2000, generator=generator), torch.randn(2000, 64)
        tensors |= {f"{name}.lora_down.weight": down.half(), f"{name}.lora_up.weight": up.half()}
    save_file(tensors, path)
    return path


def _peak(*arguments: object) -> int:
    """Return the largest RssAnon of a command in bytes, read every 5 ms."""
    peak, program = 0, "from loralab.cli.main import main; main()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                    if line.startswith("RssAnon:"):
                        peak = max(peak, 1024 * int(line.split()[1]))
            time.sleep(0.005)
    assert process.returncode == 0
    return peak


ON_A_BASE = {
    "dora": {"lora_down.weight": (2, 6), "lora_up.weight": (8, 2), "dora_scale": (8, 1)},
    "oft": {"oft_blocks": (2, 4, 4)},
    "boft": {"oft_blocks": (2, 2, 4, 4)},
    "loha": {"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2), "hada_w2_b": (2, 6)},
}


@pytest.mark.parametrize("kind", ON_A_BASE)
def test_the_update_of_a_file_is_formed_where_the_base_is(kind: str) -> None:
    """torch's own stand-ins for tensors on a GPU: no numbers, but every rule about devices."""
    with FakeTensorMode():
        tensors = {name: torch.empty(shape) for name, shape in ON_A_BASE[kind].items()}
        base = torch.empty(8, 6, device="cuda")
        assert ModuleWeights(tensors, 1.0).delta(base).device == base.device

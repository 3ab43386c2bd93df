"""Tools on adapter files: what they write, measured on the weights, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from loralab.adapters.export import write_adapter
from loralab.adapters.inject import inject
from loralab.adapters.layers import adapter_layers
from loralab.adapters.spec import AdapterSpec
from loralab.app import tools
from loralab.app.base_tools import merge_into_base
from loralab.app.target import Target
from loralab.cli.main import app
from loralab.errors import UserError
from tests.adapters.adapted import SD_SCRIPTS_TEXT_ENCODER, randomize
from tests.adapters.broken import BROKEN, OTHER_BASE, Q
from tests.adapters.reloading import PREFIXES, UNET_TARGETS, load, parts_of
from tests.tiny import make_tiny_sd1, make_tiny_sdxl

RANK, ALPHA = 4, 7.0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd1(tmp_path_factory.mktemp("tools") / "sd1")


@pytest.fixture(scope="module")
def live(base: Path) -> dict[str, nn.Module]:
    parts = parts_of(load(base, "sd1"))
    for name, module in parts.items():
        targets = UNET_TARGETS if name == "unet" else SD_SCRIPTS_TEXT_ENCODER
        inject(module, AdapterSpec("lora", RANK, ALPHA, 0.0, targets), part=name)
        randomize(module)
    return parts


@pytest.fixture(scope="module")
def file(live: dict[str, nn.Module], base: Path) -> Path:
    path = base.parent / "adapter.safetensors"
    write_adapter(path, live, layout="kohya", dtype=torch.float32, metadata={"ss_seed": "1"})
    return path


def deltas(path: Path) -> dict[str, Tensor]:
    """Return every module's update: alpha / rank * up @ down, by hand."""
    tensors, found = load_file(path), {}
    for key in tensors:
        if key.endswith(".lora_down.weight"):
            name = key.removesuffix(".lora_down.weight")
            down, up = tensors[key].double(), tensors[f"{name}.lora_up.weight"].double()
            scale = float(tensors[f"{name}.alpha"]) / down.shape[0]
            found[name] = up.flatten(1) @ down.flatten(1) * scale
    return found


def error(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Return the largest ||one - two|| / ||two|| of a module."""
    assert one.keys() == two.keys()
    return max(float((one[n] - two[n]).norm() / two[n].norm()) for n in two)


def loralab(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_inspect_tells_kind_rank_alpha_norm_and_metadata(file: Path) -> None:
    found = loralab("inspect", file, "--json")
    assert found["family"] == "sd1"
    assert found["metadata"]["ss_seed"] == "1"
    assert {(row["kind"], row["rank"], row["alpha"]) for row in found["modules"]} == {
        ("lora", RANK, ALPHA)
    }
    row = next(r for r in found["modules"] if r["module"].endswith("layers.0.mlp.fc1"))
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    assert row["norm"] == pytest.approx(float(deltas(file)[name].norm()), rel=1e-5)
    shown = CliRunner().invoke(app, ["inspect", str(file)])
    assert "ss_seed" in shown.output


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_convert_there_and_back_keeps_every_tensor(file: Path, tmp_path: Path, suffix: str) -> None:
    there, back = tmp_path / "there.safetensors", tmp_path / f"back.{suffix}"
    loralab("convert", file, there, "--to", "diffusers", "--json")
    assert all(key.startswith(("unet.", "text_encoder.")) for key in load_file(there))
    loralab("convert", there, back, "--to", "kohya", "--json")
    found = load_file(back) if suffix == "safetensors" else torch.load(back, weights_only=True)
    original = load_file(file)
    assert found.keys() == original.keys()
    assert all(torch.equal(found[key], original[key]) for key in original)
    half = tmp_path / "half.safetensors"
    loralab("convert", file, half, "--to", "kohya", "--precision", "16", "--json")
    assert {tensor.dtype for tensor in load_file(half).values()} == {torch.float16}


def test_exact_merge_is_the_weighted_sum(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "sum.safetensors"
    loralab("merge", file, file, "--out", out, "--weight", 0.75, "--weight", -0.25, "--json")
    wanted = {name: delta * 0.5 for name, delta in deltas(file).items()}
    assert error(deltas(out), wanted) < 1e-5
    assert load_file(out)[f"{Q}.lora_down.weight"].shape[0] == 2 * RANK


def test_merge_by_svd_to_enough_rank_is_the_sum_too(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "svd.safetensors"
    loralab("merge", file, file, "--out", out, "--rank", RANK, "--json")
    assert error(deltas(out), {n: 2 * d for n, d in deltas(file).items()}) < 1e-5


def test_merged_base_is_base_plus_update(
    base: Path, live: dict[str, nn.Module], file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    loralab("merge", file, "--base", base, "--out", out, "--json")
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        before, after = (load_file(b / part / f"{stem}.safetensors") for b in (base, out))
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        for path, layer in adapter_layers(live[part]).items():
            own: Any = layer
            key = next(k for k in before if k.removeprefix("text_model.") == f"{path}.weight")
            wanted = before[key] + own.get_delta_weight("default").detach()
            torch.testing.assert_close(after[key], wanted, rtol=1e-6, atol=1e-6)
            changed.remove(key)
        assert not changed, "other weights are as they were"
    load(out, "sd1")


def test_extraction_of_a_merged_base_gives_the_adapter_back(
    base: Path, file: Path, tmp_path: Path
) -> None:
    merged, out = tmp_path / "merged", tmp_path / "back.safetensors"
    loralab("merge", file, "--base", base, "--out", merged, "--json")
    figures = loralab("extract", base, merged, out, "--rank", 2 * RANK, "--json")
    assert figures["modules"] == len(deltas(file))
    assert error(deltas(out), deltas(file)) < 1e-4
    # Of the same energy at the adapter's own rank: it has no more directions.
    assert figures["least_energy"] > 0.999999


def test_resize_loses_less_the_more_energy_it_keeps(file: Path, tmp_path: Path) -> None:
    errors = []
    for energy in (0.3, 0.6, 0.9, 1.0):
        out = tmp_path / f"{energy}.safetensors"
        rows = loralab("resize", file, out, "--energy", energy, "--json")
        assert all(row["energy"] >= energy - 1e-9 for row in rows)
        whole, cut = deltas(file), deltas(out)
        errors.append(max(float((cut[n] - whole[n]).norm() / whole[n].norm()) for n in whole))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.3
    assert errors[-1] < 1e-5


@pytest.mark.parametrize("which", BROKEN)
def test_a_broken_file_is_answered_with_one_sentence(
    file: Path, tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, damage, said = BROKEN[which]
    broken = tmp_path / name
    damage(file, broken)
    with pytest.raises(UserError, match=said) as caught:
        tools.convert(broken, Target.of(tmp_path / "out.safetensors", to="diffusers"))
    assert len(caught.value.problems) == 1
    assert str(broken) in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()
    assert not (tmp_path / "pickle-was-run").exists()


def test_missing_alpha_means_alpha_of_the_rank(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({k: t for k, t in load_file(file).items() if not k.endswith("alpha")}, path)
    assert {row["alpha"] for row in tools.inspect(path)["modules"]} == {float(RANK)}


@pytest.mark.parametrize("which", OTHER_BASE)
def test_an_adapter_of_another_model_is_not_merged(
    base: Path, file: Path, tmp_path: Path, which: str
) -> None:
    damage, said = OTHER_BASE[which]
    other = tmp_path / "other.safetensors"
    damage(file, other)
    with pytest.raises(UserError, match=said) as caught:
        merge_into_base(base, [other], [1.0], tmp_path / "merged", overwrite=False)
    assert len(caught.value.problems) == 1
    assert not list(tmp_path.glob("*merged*")), "nothing half written stays"


def test_a_base_of_another_family_is_one_sentence_a_part(base: Path, tmp_path: Path) -> None:
    parts = parts_of(load(make_tiny_sdxl(tmp_path / "sdxl"), "sdxl"))
    for name, module in parts.items():
        targets = UNET_TARGETS if name == "unet" else SD_SCRIPTS_TEXT_ENCODER
        inject(module, AdapterSpec("lora", RANK, ALPHA, 0.0, targets), part=name)
        randomize(module)
    other = tmp_path / "sdxl.safetensors"
    write_adapter(
        other, parts, layout="kohya", dtype=torch.float32, metadata={}, prefixes=PREFIXES["sdxl"]
    )
    with pytest.raises(UserError) as caught:
        merge_into_base(base, [other], [1.0], tmp_path / "merged", overwrite=False)
    counts = [len(adapter_layers(parts[part])) for part in ("text_encoder", "text_encoder_2")]
    told = {part: str(problem) for problem in caught.value.problems
            for part in parts if f"modules of {part}," in str(problem)}  # fmt: skip
    assert len(told) == len(caught.value.problems)
    assert min(counts) > 5
    assert f"adapts {counts[1]} modules of text_encoder_2, {counts[1]} of" in told["text_encoder_2"]
    assert f"adapts {counts[0]} modules of text_encoder, 6 of which" in told["text_encoder"]
    for text in told.values():
        assert text.startswith(str(other))
        assert f"{base} does not have" in text
        assert "give a base of the adapter's own family" in text


@pytest.mark.parametrize("command", ["convert", "resize", "merge", "extract", "merge --base"])
def test_nothing_that_is_there_is_replaced_unasked(
    base: Path, file: Path, tmp_path: Path, command: str
) -> None:
    out = tmp_path / ("there" if "base" in command else "there.safetensors")
    (out.mkdir if "base" in command else out.touch)()
    arguments = {
        "convert": (file, out, "--to", "kohya"),
        "resize": (file, out, "--rank", 2),
        "merge": (file, "--out", out),
        "merge --base": (file, "--base", base, "--out", out),
        "extract": (base, base, out),
    }[command]
    with pytest.raises(UserError, match="is there already; choose another name"):
        loralab(command.split()[0], *arguments)
    if command == "resize":
        loralab(command, *arguments, "--overwrite", "--json")
        assert {row["rank"] for row in tools.inspect(out)["modules"]} == {2}


def test_a_half_precision_file_stays_one_and_says_its_new_rank(file: Path, tmp_path: Path) -> None:
    half, small = tmp_path / "half.safetensors", tmp_path / "small.safetensors"
    loralab("convert", file, half, "--to", "kohya", "--precision", "fp16", "--json")
    loralab("resize", half, small, "--rank", 2, "--json")
    found = tools.inspect(small)
    assert {(row["dtype"], row["rank"]) for row in found["modules"]} == {("float16", 2)}
    assert found["metadata"]["ss_network_dim"] == found["metadata"]["ss_network_alpha"] == "2"


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf"])
def test_a_weight_that_is_no_number_is_refused(
    base: Path, file: Path, tmp_path: Path, weight: str
) -> None:
    for out, options in ((tmp_path / "m", ("--base", base)), (tmp_path / "m.safetensors", ())):
        with pytest.raises(UserError, match=f"--weight is {weight}; it must be a finite number"):
            loralab("merge", file, "--out", out, "--weight", weight, *options)
        assert not out.exists()


def test_a_merged_base_that_overflows_is_refused(base: Path, file: Path, tmp_path: Path) -> None:
    loud, out = tmp_path / "loud.safetensors", tmp_path / "merged"
    save_file({k: t * 1e6 if "alpha" in k else t for k, t in load_file(file).items()}, loud)
    with pytest.raises(UserError, match="is not finite in float32; lower --weight") as caught:
        loralab("merge", loud, "--out", out, "--weight", 3e38, "--base", base)
    assert len(caught.value.problems) == 1
    assert list(tmp_path.iterdir()) == [loud], "nothing half written stays"


def test_a_base_model_is_told_to_be_no_adapter_in_one_sentence(base: Path) -> None:
    with pytest.raises(UserError, match=r"holds no adapter \(\d+ other tensors\)") as caught:
        tools.inspect(base / "unet" / "diffusion_pytorch_model.safetensors")
    assert len(caught.value.problems) == 1


def test_adapters_with_linear_layers_and_with_1x1_convolutions_can_be_added(
    file: Path, tmp_path: Path
) -> None:
    flat, out = tmp_path / "flat.safetensors", tmp_path / "sum.safetensors"
    whole = load_file(file)
    squeezed = {k: t.flatten(1) if t.shape[2:] == (1, 1) and "proj" in k else t
                for k, t in whole.items()}  # fmt: skip
    assert any(squeezed[key].dim() != whole[key].dim() for key in whole)
    save_file({k: t.contiguous() for k, t in squeezed.items()}, flat)
    for options in ((), ("--rank", RANK)):
        loralab("merge", file, flat, "--out", out, "--overwrite", *options, "--json")
        assert error(deltas(out), {n: 2 * d for n, d in deltas(file).items()}) < 1e-5

"""Adapter weights in bfloat16: what is stored, what is trained, what is exported."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import Tiny, TinyRun, changed

BF16 = "adapter.weight_dtype=bf16"
FUSED = ("fused_backward=true", "trainer.gradient_clip_val=null", "callbacks.dead_adapters=null")


@effect("adapter.weight_dtype")
@pytest.mark.parametrize(("word", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_weights_are_kept_as_they_are_named_and_moments_in_float32(
    tiny: Tiny, word: str, dtype: torch.dtype
) -> None:
    content = tiny.run(f"adapter.weight_dtype={word}").checkpoint(3)
    assert {tensor.dtype for tensor in content["state_dict"].values()} == {dtype}
    states = content["optimizer_states"][0]["state"].values()
    assert {state["exp_avg_sq"].dtype for state in states} == {torch.float32}


@effect("adapter.weight_dtype")
def test_training_goes_where_float32_goes(tiny: Tiny) -> None:
    half, full = tiny.run(BF16).adapter, tiny.run().adapter
    names = [name for name in full if name.endswith("lora_up.weight")]
    one, other = (torch.cat([t[n].flatten() for n in names]) for t in (half, full))
    assert float(other.norm()) > 0
    assert float(torch.cosine_similarity(one, other, dim=0)) > 0.9


@effect("adapter.weight_dtype")
def test_the_plan_says_so(tiny: Tiny) -> None:
    assert "adapter weights in bf16, rounded by chance" in tiny.run(BF16).stdout
    assert "adapter weights" not in tiny.run().stdout


@effect("adapter.weight_dtype")
def test_the_draw_is_seeded_by_the_run(tiny: Tiny) -> None:
    again = tiny.run_anew(BF16)
    assert changed(tiny.run(BF16).adapter, again.adapter) == []


@effect("adapter.weight_dtype", "fused_backward")
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_fused", "sgd", "adafactor"])
def test_the_fused_step_rounds_as_the_plain_one_does(tiny: Tiny, optimizer: str) -> None:
    choice = (BF16, f"optimizer={optimizer}", *FUSED[1:], "scheduler=linear")
    plain, fused = tiny.run(*choice), tiny.run(*choice, FUSED[0])
    assert changed(plain.checkpoint(3)["state_dict"], fused.checkpoint(3)["state_dict"]) == []


@effect("adapter.weight_dtype")
@pytest.mark.parametrize("fused", [(), FUSED])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "sgd"])
def test_a_run_goes_on_bit_for_bit(tiny: Tiny, fused: tuple[str, ...], optimizer: str) -> None:
    every = ("callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep_last=9")
    options = (BF16, *every, *fused, f"optimizer={optimizer}", "adapter.dropout=0.2")
    whole = tiny.run_anew(*options)
    again = tiny.run_anew(*options, f"run_id={_killed(whole)}", "resume=auto")
    assert changed(whole.checkpoint(3)["state_dict"], again.checkpoint(3)["state_dict"]) == []
    states = [run.checkpoint(3)["optimizer_states"][0]["state"] for run in (whole, again)]
    for number, state in states[0].items():
        tensors = {k: torch.as_tensor(v) for k, v in state.items()}
        others = {k: torch.as_tensor(v) for k, v in states[1][number].items()}
        assert changed(tensors, others) == []


def _killed(run: TinyRun) -> str:
    """Copy a run as a kill after its second step would have left it."""
    copy = run.folder.with_name(f"{run.folder.name}-killed")
    shutil.copytree(run.folder, copy)
    shutil.rmtree(copy / "adapters")
    (copy / "checkpoints" / "step-000003.ckpt").unlink()
    state = (copy / "run.json").read_text().replace('"finished"', '"running"')
    (copy / "run.json").write_text(state)
    return copy.name


@effect("adapter.weight_dtype")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_files_hold_the_trained_weights_and_start_another_run(
    tiny: Tiny, tmp_path: Path, precision: str
) -> None:
    run = tiny.run(BF16, "adapter.alpha=3", f"export.precision={precision}")
    live = run.checkpoint(3)["state_dict"]
    names = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
    error = 2**-10 if precision == "fp16" else 0  # its normal numbers have two bits more
    compared = 0
    for key, tensor in live.items():
        part, _, path = key.partition(".")
        module, _, name = path.rpartition(".lora_")
        start = "lora_unet" if part == "unet" else "lora_te_text_model"
        stored = run.adapter[f"{start}_{module.replace('.', '_')}.{names[f'lora_{name}']}"]
        torch.testing.assert_close(stored.float(), tensor.float(), rtol=error, atol=error * 1e-3)
        compared += 1
    assert compared == len(live) == sum(not name.endswith(".alpha") for name in run.adapter)
    (file,) = (run.folder / "adapters").glob("tiny.safetensors")
    kept = tmp_path / "start.safetensors"
    shutil.copy(file, kept)
    still = ("optimizer.lr=0", "optimizer.weight_decay=0", "trainer.max_steps=1")
    again = tiny.run(BF16, "adapter.alpha=3", f"adapter.init_from={kept}", *still)
    differing = [
        name for name, tensor in load_file(kept).items()
        if not torch.allclose(tensor.float(), again.adapter[name].float(), rtol=2**-8, atol=1e-7)
    ]  # fmt: skip
    assert differing == []
    if precision != "fp16":
        assert changed({n: t.float() for n, t in load_file(kept).items()}, again.adapter) == []


@effect("adapter.weight_dtype")
def test_accumulation_and_clipping_are_exact_so_they_are_allowed(tiny: Tiny) -> None:
    run = tiny.run(BF16, "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.01",
                   "trainer.precision=bf16-mixed")  # fmt: skip
    assert run.state["state"] == "finished"


@effect("adapter.weight_dtype")
def test_all_that_cannot_be_exact_is_named_at_once(tiny: Tiny) -> None:
    with pytest.raises(ConfigError) as refusal:
        tiny.config(BF16, "adapter=dora", "optimizer=adamw_schedulefree",
                    "trainer.precision=16-mixed", "trainer.devices=2", "ema=default",
                    "adapter.weight_norm.type=spectral")  # fmt: skip
    found = {problem.key: str(problem) for problem in refusal.value.problems}
    wanted = {
        "adapter.kind": "dora", "optimizer._target_": "schedulefree.AdamWScheduleFree",
        "trainer.precision": "16-mixed", "trainer.devices": "2", "ema.enabled": "true",
        "adapter.weight_norm.type": "spectral",
    }  # fmt: skip
    for key, value in wanted.items():
        assert found[key].startswith((f"{key} is {value}", "ema.enabled is true"))
    rounding = [text for text in found.values() if "adapter.weight_dtype is bf16" in text]
    assert len(rounding) >= 5
    assert all("or adapter.weight_dtype=fp32" in text for text in rounding)


@effect("adapter.weight_dtype")
@pytest.mark.parametrize("optimizer", ["lion", "adamw8bit", "muon", "prodigy", "soap"])
def test_optimizers_that_do_not_step_one_by_one_are_refused(tiny: Tiny, optimizer: str) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\._target_=torch\.optim\.AdamW, or adapter"):
        tiny.config(BF16, f"optimizer={optimizer}", "adapter.text_encoder.lr_scale=1")

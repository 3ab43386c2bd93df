"""The command a newcomer types first, in an interpreter of its own; and half-precision bases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.integration.artifacts import adapter
from tests.integration.cli import ENVIRONMENT, Cli
from tests.integration.zygote import TRAIN


def test_smoke_on_the_demo_base_ends_with_two_files_and_says_what_to_do_next(
    output: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(TRAIN), "experiment=smoke", f"output_dir={output}", "run_id=a"]
    done = subprocess.run(
        [*command, "trainer.max_steps=4"],
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for words in ("Plan of smoke", "step 4/4", "val/loss", "Done. The run is in", "tensorboard"):
        assert words in done.stdout
    folder = output / "smoke" / "a"
    assert sorted(path.name for path in folder.iterdir() if "tfevents" not in path.name) == [
        "adapters",
        "checkpoints",
        "config.yaml",
        "data.json",
        "hparams.yaml",
        "images.json",
        "lr.png",
        "run.json",
        "settings.json",
        "train.log",
        "validation.json",
    ]
    for line in (folder / "train.log").read_text().splitlines():
        assert "INFO loralab: epoch" in line, "a run that went well has nothing else to tell"
        assert "order receipt" in line
    files = sorted(path.name for path in (folder / "adapters").iterdir())
    assert files == [
        "smoke.diffusers.safetensors",
        "smoke.json",
        "smoke.md",
        "smoke.safetensors",
    ]
    with safe_open(folder / "adapters" / "smoke.safetensors", "pt") as file:
        assert file.metadata()["ss_steps"] == "4"
    assert json.loads((folder / "run.json").read_text())["state"] == "finished"
    assert list(tmp_path.iterdir()) == [output], "something was written beside the output folder"


@pytest.mark.parametrize(
    "precision",
    [
        "model.weight_dtype=bf16",
        "model.weight_dtype=fp16",
        "trainer.precision=bf16-mixed",
    ],
)
def test_base_in_half_precision_trains_a_finite_adapter_that_helps(
    cli: Cli, tiny: list[str], output: Path, precision: str
) -> None:
    run = [*tiny, "run_id=a", "logger=none", "export.precision=fp32", "validation.every_n_steps=4"]
    outcome = cli(*run, *precision.split())
    assert outcome.code == 0, outcome.text
    assert "Warning" not in outcome.text
    tensors = adapter(output / "smoke" / "a")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert any(bool(t.any()) for key, t in tensors.items() if "lora_up" in key)
    figures = json.loads((output / "smoke" / "a" / "run.json").read_text())["metrics"]
    assert figures["val/loss"] < figures["val/loss_base"]

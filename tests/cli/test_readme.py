"""The commands of README.md, run as they stand on tiny models."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.cli import ENVIRONMENT
from tests.tiny import make_images, make_tiny_sd1

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line]
SHORT = [
    "trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.precision=32-true",
    "scheduler.warmup_steps=0", "preview.prompts=[]", "demo_quality=0", "cpu_threads=1",
    "validation.every_n_steps=null",
]  # fmt: skip
TINY = [
    "model.native_resolution=64", "data.batch_size=2", "data.num_workers=0",
    "data.buckets={step: 16, min_side: 32, max_side: 128}", "model.weight_dtype=fp32",
]  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with what the commands name."""
    make_tiny_sd1(tmp_path / "BASE")
    make_images(tmp_path / "PHOTOS", count=24)
    make_images(tmp_path / "numbered" / "1_shape", count=4)
    settings = {"base_model": str(tmp_path / "BASE"), "img_folder": str(tmp_path / "numbered"),
                "use_8bit_adam": False, "mixed_precision": "no", "max_steps": 2,
                "train_resolution": 64, "bucket_reso_steps": 16, "min_bucket_resolution": 32,
                "max_bucket_resolution": 128, "num_workers": 0}  # fmt: skip
    (tmp_path / "OLD.json").write_text(json.dumps(settings), encoding="utf-8")
    return tmp_path


def arguments(command: str) -> list[str]:
    """Return a command of the page as one that runs here, cut short."""
    words = shlex.split(command)
    if words[0] == "make":
        return ["make", "-n", "-C", str(ROOT), *words[1:]]
    program = {"python": "loralab.app.entry", "loralab": "loralab.cli.main"}[words[0]]
    start = [sys.executable, "-c", f"from {program} import main; main()"]
    rest = words[2:] if words[0] == "python" else words[1:]
    is_old = any(word == "experiment=old" for word in rest)
    own = ["--config-dir", "conf"] if is_old else []
    trains = (words[0] == "python" and "--help" not in rest) or rest[0] == "check"
    if trains and not is_old:
        own += SHORT + (TINY if any("BASE" in word for word in rest) else [])
    return [*start, *rest, *own]


def test_there_are_commands_to_run() -> None:
    assert len(COMMANDS) >= 12
    others = re.sub(r"```sh\n.*?```", "", README, flags=re.DOTALL)
    started = re.findall(r"^(?:python train\.py|loralab) .*", others, flags=re.MULTILINE)
    assert started == [], "a command outside the blocks that are run"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_the_readme_run_one_after_another(desk: Path) -> None:
    for command in COMMANDS:  # a later one may read what an earlier one wrote
        done = subprocess.run(
            arguments(command), cwd=desk, capture_output=True, text=True, check=False,
            env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

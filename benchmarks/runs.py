"""Runs of `train.py` as new processes, for the evidence."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def train(
    output: Path, *overrides: str, check: bool = True
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run `python train.py` in a new process; return it and its seconds."""
    command = [sys.executable, "train.py", *overrides, f"output_dir={output}"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done, time.perf_counter() - started


def only_run(output: Path, name: str = "demo") -> Path:
    """Return the one run folder below a name."""
    (folder,) = (path.parent for path in (output / name).glob("*/run.json"))
    return folder

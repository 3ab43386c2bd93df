"""`python train.py` as a process of its own, and the settings that keep a run tiny."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.integration.zygote import TRAIN

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "TERM": "dumb"}


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code (negative for a signal) and all it printed."""

    code: int
    text: str


@dataclass
class Process:
    """A command under way."""

    pid: int
    output: Path
    ask: Callable[[Any], Any]

    def wait(self) -> Outcome:
        """Wait for the end."""
        code = self.ask({"wait": self.pid})
        return Outcome(code, self.output.read_text(encoding="utf-8", errors="replace"))

    def wait_for(self, condition: Callable[[], object], *, seconds: float = 60.0) -> None:
        """Wait until something is so, while the command runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.output.read_text(encoding="utf-8")
            time.sleep(0.005)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and those it started."""
        os.killpg(self.pid, number)


class Cli:
    """Starts commands in forks of one process that has the libraries loaded."""

    def __init__(self, kind: str, folder: Path) -> None:
        """Start the forking process; outputs of commands are kept in the folder."""
        self.folder = folder
        self.count = 0
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.zygote", kind],
            cwd=TRAIN.parent,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, **options: Any) -> Outcome:
        """Run a command to its end."""
        return self.start(*arguments, **options).wait()

    def start(
        self,
        *arguments: str,
        folder: Path | None = None,
        obeys_modes: bool = False,
        tell_torch: bool = False,
    ) -> Process:
        """Start a command and return at once.

        Args:
            arguments: The command line after `python train.py`.
            folder: Working folder.
            obeys_modes: Obey file modes even as root.
            tell_torch: Add 100 to the exit code when torch was imported.
        """
        self.count += 1
        output = self.folder / f"{self.count:03d}.txt"
        output.touch()
        pid = self._ask(
            {
                "arguments": list(arguments),
                "folder": str(folder or TRAIN.parent),
                "output": str(output),
                "environment": ENVIRONMENT,
                "obeys_modes": obeys_modes,
                "tell_torch": tell_torch,
            }
        )
        return Process(pid, output, self._ask)

    def close(self) -> None:
        """End the forking process."""
        self._pipe(self.server.stdin).write("null\n")
        self._pipe(self.server.stdin).close()
        self._pipe(self.server.stdout).close()
        self.server.wait(timeout=30)

    def _ask(self, request: Any) -> int:
        stdin = self._pipe(self.server.stdin)
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        return int(json.loads(self._pipe(self.server.stdout).readline()))

    def _pipe(self, pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def tiny_run(base: Path, images: Path, held_out: Path, output: Path) -> list[str]:
    """Return the settings of a run of a second: tiny base, 64 px, four steps."""
    return [
        "~experiment",
        "name=smoke",
        "cpu_threads=1",
        "model=sd15",
        "data=folder",
        "trainer=cpu",
        "trainer.log_every_n_steps=1",
        "scheduler=cosine",
        "scheduler.warmup_steps=2",
        "data.captions.shuffle_tags=true",
        "data.captions.keep_tags=1",
        "adapter.unet.targets=[full]",
        "validation.strata=2",
        f"model.path={base}",
        "model.native_resolution=64",
        f"data.image_dir={images}",
        f"validation.folder={held_out}",
        f"output_dir={output}",
        "data.batch_size=2",
        "data.num_workers=0",
        "data.buckets.step=16",
        "data.buckets.min_side=32",
        "data.buckets.max_side=128",
        "adapter.rank=4",
        "optimizer.lr=1e-3",
        "optimizer.fused=false",
        "trainer.max_steps=4",
        "callbacks.checkpoint.every_n_steps=2",
        "validation.every_n_steps=2",
    ]

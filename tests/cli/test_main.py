"""The console script as a process of its own: its help, its speed, its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def loralab(*arguments: str, code: str = "main()") -> subprocess.CompletedProcess[str]:
    """Run the console script's function, as the installed script does."""
    program = f"from loralab.cli.main import app, main\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_help_names_the_commands() -> None:
    outcome = loralab("--help")
    assert outcome.returncode == 0
    assert "evaluate-demo" in outcome.stdout


def test_help_does_not_wait_for_torch_or_hydra() -> None:
    program = """
import atexit, sys
heavy = ("torch", "hydra", "lightning", "diffusers", "transformers", "PIL")
atexit.register(lambda: print("loaded:", [name for name in heavy if name in sys.modules]))
main()
"""
    outcome = loralab("--help", code=program)
    assert "loaded: []" in outcome.stdout


@pytest.mark.slow
def test_help_answers_within_a_second() -> None:
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        loralab("--help")
        durations.append(time.perf_counter() - start)
    assert min(durations) < 1


@pytest.mark.parametrize(
    "arguments", [("evaluate-dmo",), ("evaluate-demo",), ("evaluate-demo", "x", "--drawings", "0")]
)
def test_a_wrong_command_line_ends_with_2(arguments: tuple[str, ...]) -> None:
    outcome = loralab(*arguments)
    assert outcome.returncode == 2
    assert "Traceback" not in outcome.stdout + outcome.stderr


def test_what_is_no_run_folder_ends_with_2_and_one_sentence(tmp_path: Path) -> None:
    place = tmp_path / "nowhere"
    outcome = loralab("evaluate-demo", str(place))
    assert outcome.returncode == 2
    assert outcome.stdout.splitlines() == [
        "Nothing was started: one problem",
        f"  - {place} does not exist; give a run folder such as outputs/demo/RUN_ID.",
    ]
    assert outcome.stderr == ""


def test_a_crash_ends_with_1_and_tells_where_its_traceback_is() -> None:
    program = """
@app.command("fail")
def fail() -> None:
    raise RuntimeError("a mistake of ours")
main()
"""
    outcome = loralab("fail", code=program)
    assert outcome.returncode == 1
    first, second = outcome.stderr.splitlines()
    assert first == "loralab crashed: RuntimeError: a mistake of ours"
    log = Path(second.removeprefix("The traceback is in ").removesuffix("."))
    text = log.read_text(encoding="utf-8")
    log.unlink()
    assert "Traceback" in text
    assert "in fail" in text


def test_ctrl_c_ends_with_130() -> None:
    program = """
@app.command("wait")
def wait() -> None:
    raise KeyboardInterrupt
main()
"""
    outcome = loralab("wait", code=program)
    assert outcome.returncode == 130
    assert "Traceback" not in outcome.stderr

"""A folder of settings files, trained one after another, each as a process of its own.

A file moves to `complete/` when its run has finished and to `failed/` when it cannot; what was
interrupted stays and goes on at the next start. `.queue/` holds what is needed for that. Windows
has neither the lock nor the training's end with the queue: start one queue there at a time.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from loralab.app.composition import compose_config
from loralab.app.exits import CRASH, INTERRUPTED, USER_ERROR
from loralab.app.folders import read_state, write_text
from loralab.app.settings.experiment import load_settings
from loralab.config.records import RunConfig
from loralab.errors import ConfigError, Problem, UserError

if sys.platform != "win32":
    import fcntl

ENDINGS = (".json", ".toml", ".txt", ".sh", ".bat", ".ps1", ".safetensors", ".yaml")
_TRAIN = "from loralab.app.entry import main; main()"


@dataclass(frozen=True)
class Outcome:
    """How a file ended: an exit code, its run folder if there is one, and the reason."""

    code: int
    folder: Path | None
    reason: str = ""


def run_queue(folder: Path, overrides: Sequence[str] = (), *, stop_on_error: bool = False) -> int:
    """Train every settings file of a folder in the order of their names.

    Args:
        folder: The folder; files below it are not looked at.
        overrides: What lies over every file.
        stop_on_error: Leave the rest where one fails.

    Returns:
        The exit code: 0 when none failed, 2 when all failures are for the user to mend, else 1.

    Raises:
        ConfigError: There is no such folder, nothing in it, or another queue works on it.
    """
    files = _waiting(folder)
    outcomes: dict[str, Outcome] = {}
    with _only_one(folder) as lock:
        for place, file in enumerate(files, start=1):
            print(f"\n== {place} of {len(files)}: {file.name}", flush=True)
            outcome = _run(file, overrides, lock)
            outcomes[file.name] = outcome
            if outcome.code == INTERRUPTED:
                print(f"{file.name} was interrupted; the same command goes on with it.")
                break
            _move(file, folder / ("failed" if outcome.code else "complete"), outcome)
            if outcome.code and stop_on_error:
                break
    return _sum_up(outcomes, waiting=len(files) - len(outcomes))


def _waiting(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(Problem(str(folder), f"{folder} is not a folder of settings files."))
    files = sorted(path for path in folder.iterdir() if path.is_file()
                   and path.suffix.lower() in ENDINGS)  # fmt: skip
    if not files:
        done = len(list((folder / "complete").glob("*")))
        words = f"; {done} files are in complete/" if done else ""
        raise ConfigError(Problem(str(folder), f"{folder} holds no settings file to run{words}."))
    return files


def _run(file: Path, overrides: Sequence[str], lock: IO[str]) -> Outcome:
    """Train one file, or go on with it where an earlier queue stopped."""
    place = file.parent / ".queue"
    name = "queued-" + re.sub(r"[^\w-]", "_", file.stem)  # a bare number is no option's name
    try:
        experiment = place / "experiment" / f"{name}.yaml"
        text = file.read_text("utf-8") if file.suffix == ".yaml" else load_settings(file).text
        write_text(experiment, text)
        given = [f"experiment={name}", *overrides, f"run_id={_run_id(place, file, name)}"]
        config = compose_config(given, config_dir=place)
    except UserError as error:
        print("\n".join(f"  - {problem}" for problem in error.problems))
        return Outcome(USER_ERROR, None, str(error))
    given += [] if config.resume else ["resume=auto"]
    log = place / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    code = _train([f"--config-dir={place.absolute()}", *given], log, lock)
    return _judged(code, config, log)


def _judged(code: int, config: RunConfig, log: Path) -> Outcome:
    run = Path(config.output_dir, config.name, str(config.run_id))
    if code == 0 and not config.check_only and read_state(run).get("state") != "finished":
        code = INTERRUPTED  # it was asked to stop, and saved
    shown = run if run.is_dir() else None
    text = log.read_text(encoding="utf-8", errors="replace") if code else ""
    return Outcome(code if code >= 0 else CRASH, shown, text)


def _run_id(place: Path, file: Path, name: str) -> str:
    """Return the run that a file is in already, or a new one; a changed file is a new run."""
    state = place / "runs.json"
    runs: dict[str, dict[str, str]] = {}
    with suppress(OSError, ValueError):
        runs = json.loads(state.read_text(encoding="utf-8"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    known = runs.get(file.name, {})
    if known.get("sha256") != digest:
        known = {"sha256": digest, "run_id": f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"}
        write_text(state, json.dumps({**runs, file.name: known}, indent=2) + "\n")
    return str(known["run_id"])


def _train(arguments: Sequence[str], log: Path, lock: IO[str]) -> int:
    """Run a training as a process of its own, which ends with this one; return its exit code."""
    bond: dict[str, Any] = {}
    if sys.platform != "win32":
        bond = {"pass_fds": [lock.fileno()], "preexec_fn": _die_with_parent}
    with log.open("a", encoding="utf-8") as file, subprocess.Popen(
        [sys.executable, "-u", "-c", _TRAIN, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **bond,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        while True:
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    file.write(line)
                    file.flush()
                return process.wait()
            except KeyboardInterrupt:  # the training has it too, saves and ends
                continue


def _die_with_parent() -> None:
    """Ask Linux to end this process when the queue ends, however it ends; elsewhere do nothing."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextmanager
def _only_one(folder: Path) -> Iterator[IO[str]]:
    """Hold the folder's lock; a training under way holds it too."""
    place = folder / ".queue" / "lock"
    place.parent.mkdir(exist_ok=True)
    with place.open("w", encoding="utf-8") as file:
        try:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            text = f"{folder} is worked on by another queue; wait for its end."
            raise ConfigError(Problem(str(folder), text)) from error
        yield file


def _move(file: Path, target: Path, outcome: Outcome) -> None:
    """Move a file; a name that is taken gets a number."""
    target.mkdir(exist_ok=True)
    goal, number = target / file.name, 1
    while goal.exists():
        number += 1
        goal = target / f"{file.stem}-{number}{file.suffix}"
    if outcome.code:
        write_text(goal.with_suffix(goal.suffix + ".log"), outcome.reason.rstrip() + "\n")
    os.replace(file, goal)


def _sum_up(outcomes: dict[str, Outcome], *, waiting: int) -> int:
    words = {0: "complete", INTERRUPTED: "interrupted"}
    print("\nThe queue:")
    for name, outcome in outcomes.items():
        where = f"  {outcome.folder}" if outcome.folder else ""
        print(f"  {name}: {words.get(outcome.code, 'failed')}{where}")
    if waiting:
        print(f"  {waiting} more wait")
    codes = {outcome.code for outcome in outcomes.values()} - {0}
    if not codes or INTERRUPTED in codes:
        return INTERRUPTED if codes else 0
    return USER_ERROR if codes == {USER_ERROR} else CRASH

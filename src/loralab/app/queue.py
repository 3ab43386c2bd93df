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
from loralab.app.folders import read_state
from loralab.app.settings.experiment import load_settings
from loralab.config.records import RunConfig
from loralab.errors import ConfigError, Problem, UserError
from loralab.files import write_text

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
    files, is_dry = _waiting(folder), "check_only=true" in overrides
    outcomes: dict[str, Outcome] = {}
    with _only_one(folder) as lock:
        for place, file in enumerate(files, start=1):
            print(f"\n== {place} of {len(files)}: {file.name}", flush=True)
            digest = _digest(file)
            outcome = _run(file, overrides, lock)
            outcomes[file.name] = outcome
            if outcome.code == INTERRUPTED:
                print(f"{file.name} was interrupted; the same command goes on with it.")
                break
            if is_dry:
                continue  # the training is still to come
            if _digest(file) == digest:
                _move(file, folder / ("failed" if outcome.code else "complete"), outcome)
                _forget(folder / ".queue", file)
            else:
                print(f"{file.name} was changed or taken away meanwhile; it is left as it is.")
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
    name = "queued-" + re.sub(r"[^\w-]", "_", file.name)  # a bare number is no option's name
    try:
        experiment = place / "experiment" / f"{name}.yaml"
        text = file.read_text("utf-8") if file.suffix == ".yaml" else load_settings(file).text
        write_text(experiment, text)
        run_id, is_new = _run_id(place, file, name)
        given = [f"experiment={name}", *overrides, f"run_id={run_id}"]
        config = compose_config(given, config_dir=place)
    except (OSError, UnicodeDecodeError) as error:
        sentence = f"{file} cannot be read as text ({error})."
        print(f"  - {sentence}")
        return Outcome(USER_ERROR, None, sentence)
    except UserError as error:
        print("\n".join(f"  - {problem}" for problem in error.problems))
        return Outcome(USER_ERROR, None, str(error))
    given += [] if config.resume else ["resume=auto"]
    log = place / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    if is_new:
        log.unlink(missing_ok=True)  # of an earlier file of the name
    code = _train([f"--config-dir={place.absolute()}", *given], log, lock)
    return _judged(code, config, log)


def _judged(code: int, config: RunConfig, log: Path) -> Outcome:
    run = Path(config.output_dir, config.name, str(config.run_id))
    if code == 0 and not config.check_only and read_state(run).get("state") != "finished":
        code = INTERRUPTED  # it was asked to stop, and saved
    shown = run if run.is_dir() else None
    text = log.read_text(encoding="utf-8", errors="replace") if code else ""
    return Outcome(code if code >= 0 else CRASH, shown, text)


def _run_id(place: Path, file: Path, name: str) -> tuple[str, bool]:
    """Return the run that a file is in, and whether it is new; a changed file is a new run."""
    runs, digest = _runs(place), _digest(file)
    known = runs.get(file.name, {})
    is_new = known.get("sha256") != digest
    if is_new:
        known = {"sha256": digest, "run_id": f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"}
        _write_runs(place, {**runs, file.name: known})
    return str(known["run_id"]), is_new


def _forget(place: Path, file: Path) -> None:
    """Let a file of this name be a new run when it comes again."""
    _write_runs(place, {name: run for name, run in _runs(place).items() if name != file.name})


def _runs(place: Path) -> dict[str, dict[str, str]]:
    with suppress(OSError, ValueError):
        found = json.loads((place / "runs.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _write_runs(place: Path, runs: dict[str, dict[str, str]]) -> None:
    write_text(place / "runs.json", json.dumps(runs, indent=2) + "\n")


def _digest(file: Path) -> str:
    """Return what a file holds, in short; of a file that is gone, nothing."""
    with suppress(OSError):
        return hashlib.sha256(file.read_bytes()).hexdigest()
    return ""


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
    try:
        place.parent.mkdir(exist_ok=True)
        place.touch()
    except OSError as error:
        text = f"{place} cannot be written ({error}); the queue keeps its state there."
        raise ConfigError(Problem(str(folder), text)) from error
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

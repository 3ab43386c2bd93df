"""Where a run lives, and which run is continued."""

from __future__ import annotations

import calendar
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loralab.app.logs import close_log
from loralab.config.records import RunConfig
from loralab.errors import Problem, ResumeError, UserError
from loralab.files import storage_problem

STATE_FILE = "run.json"
STARTED = "%Y-%m-%dT%H:%M:%S%z"  # how that file tells when the run was started
CONFIG_FILE = "config.yaml"
IMAGES_FILE = "images.json"


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and the checkpoint it goes on from.

    Attributes:
        path: The folder; it need not exist yet.
        checkpoint: Checkpoint to continue from, or None to start at step 0.
        continued: The folder belongs to an earlier start of the same run.
        finished: The run has reached its end already.
    """

    path: Path
    checkpoint: Path | None = None
    continued: bool = False
    finished: bool = False


def choose_folder(config: RunConfig, *, sweep_folder: Path | None = None) -> RunFolder:
    """Decide where the run goes; nothing is created.

    Raises:
        ResumeError: The folder exists and resume is not set, or the checkpoint is not one of ours.
    """
    if sweep_folder is not None:
        return RunFolder(_unused(sweep_folder, holding=CONFIG_FILE))
    parent = Path(config.output_dir) / config.name
    if config.resume is None:
        return _fresh(config, parent)
    if config.resume != "auto":
        path = Path(config.resume)
        return _continued(path) if (path / CONFIG_FILE).is_file() else _from_checkpoint(path)
    if config.run_id is not None:
        folder = parent / config.run_id
        return _continued(folder) if folder.is_dir() else RunFolder(folder)
    runs = sorted((path.parent for path in parent.glob(f"*/{STATE_FILE}")), key=_started)
    unfinished = [run for run in runs if read_state(run).get("state") != "finished"]
    if unfinished or runs:
        return _continued((unfinished or runs)[-1])
    return _fresh(config, parent)


def read_state(folder: Path) -> dict[str, Any]:
    """Return what `run.json` says; empty when it is missing or unreadable."""
    return read_facts(folder / STATE_FILE)


def read_facts(path: Path) -> dict[str, Any]:
    """Return what a JSON file of a run folder says; empty when it is missing or unreadable."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def remove_leftovers(folder: RunFolder) -> None:
    """Take away what a killed start of this run was writing; nothing else writes there."""
    if folder.continued:
        for path in folder.path.rglob("*.part"):
            path.unlink(missing_ok=True)


@contextmanager
def removed_if_refused(folder: RunFolder) -> Iterator[None]:
    """Take a new run's folder away when the block is refused, so that nothing is left behind."""
    made = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
    try:
        yield
    except UserError:
        close_log()
        if not folder.continued:
            shutil.rmtree(folder.path, ignore_errors=True)
            with suppress(OSError):  # of the folders above only those that hold nothing else
                for path in made[1:]:
                    path.rmdir()
        raise


def output_folder_problem(
    path: Path, *, needed_bytes: int, key: str = "output_dir"
) -> Problem | None:
    """Return a problem when the folder cannot be made or has too little space; leave no trace."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    probe = existing / f".loralab-probe-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
        statistics = os.statvfs(existing)
    except OSError as error:
        return storage_problem(path, error, key=key)
    free = statistics.f_bavail * statistics.f_frsize
    if free < needed_bytes:
        return Problem(
            key,
            f"{key}: {path} has {free / 2**20:.0f} MiB free, and this run needs about "
            f"{needed_bytes / 2**20:.0f} MiB; free some space or set {key} to another folder.",
        )
    return None


def _started(run: Path) -> tuple[float, str]:
    """Return when a run was last started, which its name need not tell."""
    try:
        moment = time.strptime(str(read_state(run).get("started")), STARTED)
    except ValueError:
        return 0.0, run.name
    return calendar.timegm(moment) - moment.tm_gmtoff, run.name


def _fresh(config: RunConfig, parent: Path) -> RunFolder:
    if config.run_id is not None:
        folder = parent / config.run_id
        if folder.exists():
            raise ResumeError(
                Problem(
                    "run_id",
                    f"run_id is {config.run_id}, but {folder} exists already; set resume=auto to "
                    "continue it, or choose another run_id.",
                )
            )
        return RunFolder(folder)
    return RunFolder(_unused(parent / time.strftime("%Y%m%d-%H%M%S")))


def _unused(folder: Path, *, holding: str = "") -> Path:
    """Return the folder, numbered if there is one, or one that holds a file of this name.

    A sweep's folders are made for its jobs, and a search may try the same values twice.
    """
    candidate, number = folder, 1
    while (candidate / holding).exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _continued(folder: Path) -> RunFolder:
    from loralab.training.callbacks.checkpoint import checkpoints

    found = checkpoints(folder / "checkpoints")
    finished = read_state(folder).get("state") == "finished"
    return RunFolder(folder, found[-1] if found else None, continued=True, finished=finished)


def _from_checkpoint(path: Path) -> RunFolder:
    folder = path.parent.parent
    if not path.is_file():
        raise ResumeError(
            Problem(
                "resume",
                f"resume is {path}, which is neither a run folder nor a file; give one such as "
                "outputs/NAME/RUN_ID, a checkpoint in it, or resume=auto.",
            )
        )
    if not (folder / CONFIG_FILE).is_file():
        raise ResumeError(
            Problem(
                "resume",
                f"resume is {path}, but {folder / CONFIG_FILE} is missing; a checkpoint is "
                "continued in its own run folder.",
            )
        )
    return RunFolder(folder, path, continued=True)

"""The Hydra entry point: compose, run, and say in one sentence what a user can mend.

Only hydra is imported at the top, so that a misspelt key is answered before torch is loaded.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from loralab.app.composition import (
    COMPOSING_ERRORS,
    composition_problems,
    preset_folder,
    preset_problems,
)
from loralab.app.exits import CRASH, INTERRUPTED, USER_ERROR, exit_codes, refuse, tell
from loralab.app.logs import report_crash
from loralab.app.processes import is_main_process
from loralab.config.parse import parse_config
from loralab.config.store import conf_dir, register
from loralab.errors import Collector, Problem, UserError

# Names the file in which jobs of a multirun tell how they ended: launchers start processes.
_JOBS = "LORALAB_SWEEP_JOBS"
# Hydra would make these folders beside the run's own, or leave the folder that paths start from.
_NOT_OURS = ("hydra.run.dir", "hydra.output_subdir", "hydra.job.chdir")
_OURS = "output_dir, name and run_id say where a run goes."


def main() -> None:
    """Run `train.py`; exit code 0 is success, 2 a user's mistake, 1 a crash."""
    register()
    # argparse takes overrides in one piece only: `a=1 -m b=2,3` works with the flag in front
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
    sys.argv[1:] = ["record=true" if word == "--record" else word for word in sys.argv[1:]]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us instead of Hydra's own printer
    if is_main_process() and (problems := _folder_problems(sys.argv[1:])):
        refuse(problems)  # Lightning gives the processes that it starts a folder of Hydra's
    with tempfile.NamedTemporaryFile(prefix="loralab-jobs-") as jobs:
        os.environ[_JOBS] = jobs.name
        _run_task()
        _end_sweep()  # a search leaves failed jobs out and ends well


def _run_task() -> None:
    task = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(_task)
    try:
        task()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except UserError as error:
        _end_sweep()
        refuse(error.problems)
    except Exception as error:
        _end_sweep()
        if isinstance(error, COMPOSING_ERRORS):  # a job's own errors do not come this far
            refuse(composition_problems(error, sys.argv[1:]))
        report_crash(error)
        sys.exit(CRASH)


def _task(raw: DictConfig) -> float | None:
    from loralab.app.resume import with_stored_settings
    from loralab.app.run import run

    hydra_config = HydraConfig.get()
    if problems := preset_problems(hydra_config.runtime.choices):
        Collector(problems)(parse_config, raw)
        refuse(tuple(problems))
    if hydra_config.mode == RunMode.MULTIRUN:
        return _job(raw, Path(hydra_config.runtime.output_dir), number=hydra_config.job.num + 1)
    with exit_codes():
        return run(with_stored_settings(raw, hydra_config.overrides.task))


def _job(raw: DictConfig, folder: Path, *, number: int) -> float | None:
    """Run one job of a sweep; a failure is told here and raised, and the sweep goes on."""
    from loralab.app.run import run

    settings, code = folder.name, 0
    print(f"\n== Job {number}: {settings}", flush=True)
    try:
        return run(raw, sweep_folder=folder)
    except UserError as error:
        code = USER_ERROR
        tell(error.problems)
        raise
    except Exception as error:
        code = CRASH
        report_crash(error)
        raise
    finally:
        sys.stdout.flush()  # a launcher's process may be ended without
        with Path(os.environ[_JOBS]).open("a", encoding="utf-8") as jobs:
            jobs.write(json.dumps([settings, code]) + "\n")


def _end_sweep() -> None:
    """List the jobs that failed and end, if this was a sweep with such jobs."""
    lines = Path(os.environ[_JOBS]).read_text(encoding="utf-8").splitlines()
    jobs: list[tuple[str, int]] = [tuple(json.loads(line)) for line in lines]
    failed = [(settings, code) for settings, code in jobs if code]
    if failed:
        print(f"\n{len(failed)} of {len(jobs)} jobs failed; their reasons stand above:")
        for settings, _ in failed:
            print(f"  - {settings}")
        sys.exit(min(code for _, code in failed))


def _folder_problems(arguments: Sequence[str]) -> tuple[Problem, ...]:
    """Return a problem for each folder that is ours to name, and for a missing one of presets."""
    keys = (argument.partition("=")[0].lstrip("+~") for argument in arguments)
    place = preset_folder(arguments)
    missing = f"--config-dir is {place}, which is no folder; name one with YAML files as in conf/."
    return (
        *(Problem(key, f"{key} has no use here; {_OURS}") for key in keys if key in _NOT_OURS),
        *([Problem("--config-dir", missing)] if place is not None and not place.is_dir() else []),
    )

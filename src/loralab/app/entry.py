"""The Hydra entry point: compose, run, and say in one sentence what a user can mend.

Only hydra is imported at the top, so that a misspelt key is answered before torch is loaded.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from loralab.app.composition import COMPOSING_ERRORS, composition_problems, preset_problems
from loralab.app.exits import CRASH, INTERRUPTED, USER_ERROR, exit_codes, refuse, tell
from loralab.app.logs import report_crash
from loralab.config.parse import parse_config
from loralab.config.store import conf_dir, register
from loralab.errors import Collector, UserError

_jobs: list[tuple[str, bool]] = []  # of a multirun in this process: settings, failed


def main() -> None:
    """Run `train.py`; exit code 0 is success, 2 a user's mistake, 1 a crash."""
    register()
    # argparse takes overrides in one piece only: `a=1 -m b=2,3` works with the flag in front
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
    sys.argv[1:] = ["record=true" if word == "--record" else word for word in sys.argv[1:]]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us instead of Hydra's own printer
    task = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(_task)
    try:
        task()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except UserError as error:
        _end_sweep(USER_ERROR)
        refuse(error.problems)
    except Exception as error:
        _end_sweep(CRASH)
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
        return _job(raw, Path(hydra_config.runtime.output_dir))
    with exit_codes():
        return run(with_stored_settings(raw, hydra_config.overrides.task))


def _job(raw: DictConfig, folder: Path) -> float | None:
    """Run one job of a sweep; a failure is told here and raised, and the sweep goes on."""
    from loralab.app.run import run

    settings = folder.name
    print(f"\n== Job {len(_jobs) + 1}: {settings}", flush=True)
    try:
        result = run(raw, sweep_folder=folder)
    except Exception as error:
        _jobs.append((settings, True))
        if isinstance(error, UserError):
            tell(error.problems)
        else:
            report_crash(error)
        raise
    _jobs.append((settings, False))
    return result


def _end_sweep(code: int) -> None:
    """List the jobs that failed and end, if this was a sweep."""
    failed = [settings for settings, has_failed in _jobs if has_failed]
    if failed:
        print(f"\n{len(failed)} of {len(_jobs)} jobs failed; their reasons stand above:")
        for settings in failed:
            print(f"  - {settings}")
        sys.exit(code)

"""Is a folder a run of the demo that can be evaluated? Most refusals come before torch loads."""

from __future__ import annotations

from pathlib import Path

from loralab.app.stored_run import adapter_files, stored_config
from loralab.config.records import RunConfig
from loralab.config.rules import beside_the_demo
from loralab.errors import Problem, UserError


def read_run(folder: Path) -> tuple[RunConfig, Path]:
    """Return the configuration and the adapter file of a run of a style on the demo base.

    Raises:
        UserError: It is no such run, or has no adapter yet.
    """
    config = stored_config(folder)
    problems = [
        Problem(
            key,
            f"{folder} was trained with {key} {value}; only runs of the embedded demo can be "
            "evaluated: `python train.py` makes one.",
        )
        for key, value in beside_the_demo(config)
    ]
    present = adapter_files(config, folder)
    if not present:
        advice = f"finish the run first, with run_id={folder.name} resume=auto"
        text = f"{folder / 'adapters'} holds no adapter of the run's end; {advice}."
        problems.append(Problem("RUN", text))
    if problems:
        raise UserError(*problems)
    return config, present[0]

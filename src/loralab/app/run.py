"""The whole program in order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from loralab.app.folders import CONFIG_FILE, choose_folder, remove_leftovers, removed_if_refused
from loralab.app.logs import open_log, quiet_libraries
from loralab.app.processes import hand_over, handed_over, is_main_process
from loralab.app.settings.saving import SETTINGS_FILE, settings_json
from loralab.config.parse import parse_config, to_yaml
from loralab.files import write_text


def run(raw: Mapping[str, Any] | DictConfig, *, sweep_folder: Path | None = None) -> float | None:
    """Train one run from its configuration; return the metric that sweeps minimise.

    Args:
        raw: Composed Hydra config or plain data.
        sweep_folder: Folder of this job inside a multirun; None makes one from name and run_id.

    Raises:
        UserError: Anything a user can mend; every problem of preflight at once.
    """
    config = parse_config(raw)  # typed, rules checked, no torch yet
    folder = handed_over() or choose_folder(config, sweep_folder=sweep_folder)
    if folder.finished:
        print(f"{folder.path} is already finished; nothing to do.")
        return None
    quiet_libraries()
    from loralab.app.dry_run import show_dry_run
    from loralab.app.lifecycle import finish, start, train  # torch and friends load here
    from loralab.app.memory import memory_told
    from loralab.app.preflight import preflight
    from loralab.app.report import show_plan

    survey = preflight(config, folder, is_sweep=sweep_folder is not None)  # seconds; no weights
    if is_main_process():
        show_plan(config, survey, folder)
    if config.check_only:
        if is_main_process():
            show_dry_run(config, survey)
        return None
    with memory_told(config, folder):
        with removed_if_refused(folder):
            if is_main_process():
                remove_leftovers(folder)
                open_log(folder.path)
                write_text(folder.path / CONFIG_FILE, to_yaml(config))
                write_text(folder.path / SETTINGS_FILE, settings_json(config))
                hand_over(folder)
            job = start(config, survey, folder)  # weights
        train(job, folder)
        metric = finish(job, config, folder)
    if sweep_folder is not None and not job.has_ended:
        raise KeyboardInterrupt  # who stops a job does not want the next one
    return metric

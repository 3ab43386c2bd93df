"""What a run folder holds for those that come later: configuration, checkpoints, adapter files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from loralab.app.folders import CONFIG_FILE
from loralab.config.parse import as_written, parse_config
from loralab.config.records import RunConfig
from loralab.errors import Problem, UserError


def stored_config(folder: Path) -> RunConfig:
    """Return the configuration of a run.

    Raises:
        UserError: The folder is no run, or its configuration cannot be read.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(Problem("RUN", _no_run(folder)))
    return config_of(path.read_text(encoding="utf-8", errors="replace"), source=path)


def config_of(text: str, *, source: Path) -> RunConfig:
    """Return the configuration that a text in YAML means.

    Raises:
        UserError: It is no YAML, or its values are not allowed.
    """
    try:
        plain: Any = as_written(OmegaConf.to_container(OmegaConf.create(text)))
        assert isinstance(plain, dict)
    except (YAMLError, OmegaConfBaseException, AssertionError) as error:
        sentence = f"the configuration in {source} cannot be read as YAML; give another one."
        raise UserError(Problem("RUN", sentence)) from error
    return parse_config({str(key): value for key, value in plain.items()})


def adapter_files(config: RunConfig, folder: Path) -> list[Path]:
    """Return the adapter files of a run's end, as many as are there."""
    from loralab.app.export import adapter_path, written_layouts  # torch loads here

    candidates = [adapter_path(config, folder, layout) for layout in written_layouts(config)]
    return [path for path in candidates if path.is_file()]


def newest_checkpoint(source: Path) -> Path:
    """Return a checkpoint that is named, or the newest of a run folder.

    Raises:
        UserError: There is none.
    """
    from loralab.training.callbacks.checkpoint import checkpoints

    if source.is_file():
        return source
    found = checkpoints(source / "checkpoints")
    if not found:
        reason = f"{source / 'checkpoints'} holds no checkpoint"
        if not (source / CONFIG_FILE).is_file():
            raise UserError(Problem("RUN", _no_run(source)))
        raise UserError(Problem("RUN", f"{reason}; train the run first."))
    return found[-1]


def _no_run(folder: Path) -> str:
    runs = sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))
    if runs:
        return f"{folder} holds {len(runs)} run folders; give one of them, such as {runs[-1]}."
    reason = f"has no {CONFIG_FILE}" if folder.is_dir() else "does not exist"
    return f"{folder} {reason}; give a run folder such as outputs/demo/RUN_ID."

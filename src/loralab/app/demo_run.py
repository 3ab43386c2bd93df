"""Is a folder a run of the demo that can be evaluated? Most refusals come before torch loads."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from loralab.app.folders import CONFIG_FILE
from loralab.config.parse import parse_config
from loralab.config.records import RunConfig
from loralab.config.rules import beside_the_demo
from loralab.errors import Problem, UserError


def read_run(folder: Path) -> tuple[RunConfig, Path]:
    """Return the configuration and the adapter file of a run of a style on the demo base.

    Raises:
        UserError: It is no such run, or has no adapter yet.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(Problem("RUN", _no_run(folder)))
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(plain, dict)
    except (OSError, YAMLError, OmegaConfBaseException, AssertionError) as error:
        text = f"{path} cannot be read as YAML; give another run folder."
        raise UserError(Problem("RUN", text)) from error
    config = parse_config({str(key): value for key, value in plain.items()})
    problems = [
        Problem(
            key,
            f"{folder} was trained with {key} {value}; only runs of the embedded demo can be "
            "evaluated: `python train.py` makes one.",
        )
        for key, value in beside_the_demo(config)
    ]
    from loralab.app.export import adapter_path  # torch loads here

    candidates = [adapter_path(config, folder, layout) for layout in config.export.layouts]
    present = [path for path in candidates if path.is_file()]
    if not present:
        place = candidates[0] if candidates else folder / "adapters"
        text = f"{place} is missing; finish the run first, with run_id={folder.name} resume=auto."
        problems.append(Problem("RUN", text))
    if problems:
        raise UserError(*problems)
    return config, present[0]


def _no_run(folder: Path) -> str:
    runs = sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))
    if runs:
        return f"{folder} holds {len(runs)} run folders; give one of them, such as {runs[-1]}."
    reason = f"has no {CONFIG_FILE}" if folder.is_dir() else "does not exist"
    return f"{folder} {reason}; give a run folder such as outputs/demo/RUN_ID."

"""Composing a configuration, and every override that keeps it from being composed.

Hydra stops at the first error. When composing fails, each override is tried again on top of those
that work; `composition_errors` says what is wrong with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from loralab.app.composition_errors import not_an_override, reword
from loralab.config.parse import parse_config
from loralab.config.records import RunConfig
from loralab.config.store import conf_dir, register
from loralab.errors import Collector, ConfigError, Problem

COMPOSING_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)
REQUIRED = "required"
INSTEAD_OF_DEMO = "experiment=sd15_style, or ~experiment for neutral settings"


def compose_config(overrides: Sequence[str], *, config_dir: Path | None = None) -> RunConfig:
    """Return the configuration of `python train.py OVERRIDES`, for tools.

    Args:
        overrides: What would follow `train.py`.
        config_dir: A user's own folder of options, as `--config-dir` names it.

    Raises:
        ConfigError: Every problem that the training would be refused with.
    """
    raw, problems = compose_run(overrides, config_dir=config_dir)
    config = Collector(problems)(parse_config, raw)
    if problems or config is None:
        raise ConfigError(*problems)
    return config


def compose_run(
    overrides: Sequence[str],
    *,
    config_dir: Path | None = None,
    instead_of_demo: str = INSTEAD_OF_DEMO,
) -> tuple[DictConfig, list[Problem]]:
    """Return what Hydra composes, still to be parsed, and problems of the chosen presets.

    Args:
        overrides: What would follow `train.py`.
        config_dir: A user's own folder of options.
        instead_of_demo: What to choose where the demo's preset does not fit.

    Raises:
        ConfigError: The overrides do not compose; every problem.
    """
    register()
    folder = [] if config_dir is None else ["--config-dir", str(config_dir)]
    given = [*_search_path(folder), *overrides]
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            raw = compose("train", overrides=given, return_hydra_config=True)
        problems = preset_problems(raw.hydra.runtime.choices, instead=instead_of_demo)
        with open_dict(raw):
            del raw["hydra"]
    except COMPOSING_ERRORS as error:
        raise ConfigError(*composition_problems(error, [*folder, *overrides])) from error
    return raw, problems


def composition_problems(error: Exception, arguments: Sequence[str]) -> tuple[Problem, ...]:
    """Return every override that does not compose, each as one sentence.

    Args:
        error: What composing raised.
        arguments: The command line; flags of Hydra itself are skipped.
    """
    GlobalHydra.instance().clear()
    problems: list[Problem] = []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        places, candidates = _search_path(arguments), _single_overrides(arguments, problems)
        try:
            compose("train", overrides=places)
        except COMPOSING_ERRORS as found:  # the files themselves: no override is at fault
            return (reword(found, ""),)
        good = _keep_composable(places, candidates, problems)
        with suppress(*COMPOSING_ERRORS):  # what composes alone need not compose together
            Collector(problems)(parse_config, compose("train", overrides=[*places, *good]))
    return tuple(problems) or (reword(error, ""),)


def neutral_config(choices: Iterable[str] = ()) -> DictConfig:
    """Return what a run starts with before an experiment is chosen.

    Args:
        choices: Options of groups, as ``scheduler=cosine``.

    Returns:
        Plain nodes, references unresolved; what only the user knows is "required".
    """
    register()
    local = ["~local"] if (conf_dir() / "local").is_dir() else []  # a user's own defaults
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        raw = compose("train", overrides=["~experiment", *local, *choices])
    plain = OmegaConf.create(OmegaConf.to_container(raw, enum_to_str=True))
    assert isinstance(plain, DictConfig)
    for group, name in (("model", "path"), ("data", "image_dir")):
        plain[group][name] = REQUIRED
    return plain


def preset_problems(choices: Mapping[str, Any], *, instead: str = INSTEAD_OF_DEMO) -> list[Problem]:
    """Return a problem when the demo's preset stands under another base.

    Its rates, its previews and its one CPU thread would silently become those of a real training.

    Args:
        choices: The option chosen in each group.
        instead: What to add to the command.
    """
    experiment, model = choices.get("experiment"), choices.get("model")
    if experiment not in ("demo", "smoke") or model == "demo":
        return []
    return [
        Problem(
            "experiment",
            f"experiment={experiment} is made for the embedded base, but model={model} was chosen; "
            f"add {instead}.",
        )
    ]


def _keep_composable(
    good: list[str], candidates: Sequence[str], problems: list[Problem]
) -> list[str]:
    """Return the candidates that compose on top of the good ones; halving finds the others."""
    if not candidates:
        return []
    try:
        compose("train", overrides=[*good, *candidates])
        return list(candidates)
    except COMPOSING_ERRORS as found:
        if len(candidates) == 1:
            problems.append(reword(found, candidates[0], good))
            return []
    middle = len(candidates) // 2
    first = _keep_composable(good, candidates[:middle], problems)
    return first + _keep_composable([*good, *first], candidates[middle:], problems)


def _search_path(arguments: Sequence[str]) -> list[str]:
    """Return `--config-dir FOLDER` as an override, so that the user's own options are found."""
    folder = preset_folder(arguments)
    return [] if folder is None else [f"hydra.searchpath=['file://{folder.absolute()}']"]


def preset_folder(arguments: Sequence[str]) -> Path | None:
    """Return the folder that a command line gives as `--config-dir`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    found: Path | None = parser.parse_known_args(arguments)[0].config_dir
    return found


def _single_overrides(arguments: Sequence[str], problems: list[Problem]) -> list[str]:
    """Split sweeps into their values; group choices come first, because values depend on them."""
    groups: list[str] = []
    values: list[str] = []
    parser = OverridesParser.create()
    previous = ""
    for argument in arguments:
        is_folder, previous = previous in ("--config-dir", "-cd"), argument
        if argument.startswith("-") or is_folder:
            continue
        try:
            override = parser.parse_override(argument)
        except (HydraException, OmegaConfBaseException):
            problems.append(not_an_override(argument))
            continue
        key = override.get_key_element()
        if not key:
            problems.append(not_an_override(argument))
            continue
        if override.is_sweep_override() and not _is_sweep(arguments):
            text = f"{argument} gives several values, which takes -m; a list is written [a,b]."
            problems.append(Problem(key, text))
            continue
        texts = (
            [f"{key}={value}" for value in override.sweep_string_iterator()]
            if override.is_sweep_override()
            else [argument]
        )
        is_group = "." not in key and (conf_dir() / key.lstrip("+~")).is_dir()
        (groups if is_group else values).extend(texts)
    return groups + values


def _is_sweep(arguments: Sequence[str]) -> bool:
    """Tell whether the command line starts several runs."""
    starts = ("-m", "--multirun", "sweep=", "hparams_search=", "hydra.mode=")
    return any(argument.startswith(starts) for argument in arguments)

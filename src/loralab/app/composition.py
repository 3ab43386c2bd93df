"""Hydra's composition errors in our words: key, value, nearest spelling, remedy; all at once.

Hydra stops at the first error and advises `+key`, which would smuggle a misspelt key past the
schema. When composing fails, each override is tried again on top of those that work.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException, ValidationError
from yaml import MarkedYAMLError, YAMLError

from loralab.config.parse import (
    convert_list,
    describe_type,
    nearest,
    parse_config,
    record_of_list,
)
from loralab.config.records import RunConfig
from loralab.config.store import conf_dir, register
from loralab.errors import Collector, ConfigError, Problem

COMPOSING_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)
REQUIRED = "required"
_PLUGINS = {  # of Hydra -> the extra that brings them
    "hydra/sweeper/optuna": "search",
    "hydra/launcher/joblib": "cluster",
    "hydra/launcher/submitit_local": "cluster",
    "hydra/launcher/submitit_slurm": "cluster",
}
INSTEAD_OF_DEMO = "experiment=sd15_style, or ~experiment for neutral settings"
_PRESETS = ("experiment", "sweep", "hparams_search", "debug")  # groups that a run does without


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
            return (_reword(found, ""),)
        good = _keep_composable(places, candidates, problems)
        with suppress(*COMPOSING_ERRORS):  # what composes alone need not compose together
            Collector(problems)(parse_config, compose("train", overrides=[*places, *good]))
    return tuple(problems) or (_reword(error, ""),)


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
            problems.append(_reword(found, candidates[0]))
            return []
    middle = len(candidates) // 2
    first = _keep_composable(good, candidates[:middle], problems)
    return first + _keep_composable([*good, *first], candidates[middle:], problems)


def _search_path(arguments: Sequence[str]) -> list[str]:
    """Return `--config-dir FOLDER` as an override, so that the user's own options are found."""
    for flag in ("--config-dir", "-cd"):
        if flag in arguments[:-1]:
            folder = Path(arguments[arguments.index(flag) + 1]).absolute()
            return [f"hydra.searchpath=['file://{folder}']"]
    return []


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
            problems.append(_not_an_override(argument))
            continue
        key = override.get_key_element()
        if not key:
            problems.append(_not_an_override(argument))
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


def _reword(error: BaseException, override: str) -> Problem:
    if isinstance(error, UnicodeDecodeError):
        subject = override or "conf"
        return Problem(subject, f"{subject}: the file is not UTF-8 text; save it as UTF-8.")
    if isinstance(error, MissingConfigException):
        return _missing_option(error, override)
    if isinstance(error, OverrideParseException):
        return _not_an_override(override)
    key, _, value = override.partition("=")
    if isinstance(error, ValueError) and (conf_dir() / key).is_dir():
        return _missing_choice(key, value)
    if override.startswith("~"):
        return _removal(key)
    if override.startswith("+") and "already at" in str(error):
        plain = override.lstrip("+")
        name = key.lstrip("+")
        return Problem(name, f"{name} is an option already; write {plain}, without the +.")
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        where = f"{mark.name}, line {mark.line + 1}"
        return Problem(mark.name, f"{where}, is not YAML: {error.problem}; mend the file.")
    is_bare = isinstance(error, OmegaConfBaseException)
    cause = error if is_bare else error.__cause__ or error.__context__
    problem = _of_a_list(override) or _of_a_key(cause, override)
    file = re.match(r"In '([^']+)': ", str(error))
    if problem is None:
        first, *rest = str(error).splitlines() or [type(error).__name__]
        reason = (rest[0] if file and rest else first).rstrip(".:")
        subject = override or "conf/train.yaml"
        problem = Problem(subject, f"{subject} does not compose: {reason}.")
    if file and file[1] != "train":  # the mistake is in a file, not on the command line
        return Problem(problem.key, f"In {file[1]}.yaml: {problem}")
    return problem


def _of_a_key(cause: BaseException | None, override: str) -> Problem | None:
    """Return the problem when the error names a key of ours, else None."""
    key = str(getattr(cause, "full_key", None) or "").split("[")[0]  # a list's item: the list
    if not key:
        return None
    if isinstance(cause, ValidationError):
        value = getattr(cause, "value", None)
        return _wrong_value(key, override.partition("=")[2] if value is None else value)
    return _unknown_key(key) if isinstance(cause, OmegaConfBaseException) else None


def _of_a_list(override: str) -> Problem | None:
    """Return the first problem of a list of records; the library names the option, not the list."""
    key = override.partition("=")[0]
    record = _find_record(key.rpartition(".")[0])
    hint = get_type_hints(record).get(key.rpartition(".")[2]) if record else None
    kind = record_of_list(hint)
    if kind is None:
        return None
    value = OverridesParser.create().parse_override(override).value()
    problems: list[Problem] = []
    if isinstance(value, list):
        convert_list(kind, value, key, problems)
    return problems[0] if problems else None


def _not_an_override(argument: str) -> Problem:
    return Problem(
        argument,
        f"{argument!r} is not an override; write key=value, and quote values with special "
        "characters twice: 'key=\"value\"'.",
    )


def _missing_choice(group: str, value: str) -> Problem:
    if group in _PRESETS and value == "null":
        return Problem(group, f"{group} is null; to run without one write ~{group}.")
    options = ", ".join(sorted(file.stem for file in (conf_dir() / group).glob("*.yaml")))
    return Problem(group, f"{group} is {value}; it must be one of its options: {options}.")


def _removal(override: str) -> Problem:
    key = override.lstrip("~")
    return Problem(
        key,
        f"~{key} would remove something that does not exist or that every run needs; give it a "
        f"value instead, {key}=...",
    )


def _missing_option(error: MissingConfigException, override: str) -> Problem:
    group, _, option = (error.missing_cfg_file or override).rpartition("/")
    group = group.strip("/")
    folder = conf_dir() / group
    options = [file.stem for file in folder.glob("*.yaml")] if group and folder.is_dir() else []
    extra = _PLUGINS.get(f"{group}/{option}")
    if extra is not None:
        return Problem(group, f"{group}={option} is not installed: pip install 'loralab[{extra}]'.")
    if not options:
        return Problem(option, f"{group or option} is not a group of options.")
    return Problem(
        group, f"{group}={option} does not exist. {nearest(option, options, group + '=')}"
    )


def _wrong_value(key: str, value: object) -> Problem:
    item = _find_field(key)
    allowed = describe_type(item) if item is not None else "of another type"
    return Problem(key, f"{key} is {value!r}; it must be {allowed}.")


def _unknown_key(key: str) -> Problem:
    if key.split(".")[0] in _PRESETS:
        text = f"{key} is not an option; a file of that group begins with # @package _global_."
        return Problem(key, text)
    parent, _, name = key.rpartition(".")
    recipe = parent.split(".")[0]
    if recipe in ("optimizer", "trainer", "callbacks"):
        keys = _composed_keys(parent)
        names = [str(key) for key in keys if not str(key).startswith("_")]
        close = nearest(name, names, f"{parent}.")
        return Problem(
            key,
            f"{key} is not in this recipe. {close} To pass another argument, add it to a YAML "
            f"file in conf/{recipe}/.",
        )
    record = _find_record(parent)
    names = [item.name for item in dataclasses.fields(record)] if record else []
    return Problem(
        key, f"{key} is not an option. {nearest(name, names, f'{parent}.' if parent else '')}"
    )


def _composed_keys(key: str) -> list[Any]:
    from omegaconf import OmegaConf

    node = OmegaConf.select(compose("train"), key)
    return list(node) if node is not None else []


def _find_record(key: str) -> type | None:
    """Return the record type at a dotted key; the empty key is the root."""
    record: Any = RunConfig
    for name in [part for part in key.split(".") if part]:
        record = get_type_hints(record).get(name)
        if not dataclasses.is_dataclass(record):
            return None
    return record  # type: ignore[no-any-return]


def _find_field(key: str) -> dataclasses.Field[Any] | None:
    parent, _, name = key.rpartition(".")
    record = _find_record(parent)
    fields = {item.name: item for item in dataclasses.fields(record)} if record else {}
    return fields.get(name)

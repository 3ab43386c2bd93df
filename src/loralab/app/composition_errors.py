"""Hydra's composition errors in our words: key, value, nearest spelling, remedy.

Hydra itself advises `+key`, which would smuggle a misspelt key past the schema.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, get_type_hints

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError
from yaml import MarkedYAMLError

from loralab.config.parse import convert_list, describe_type, nearest, record_of_list
from loralab.config.records import RunConfig
from loralab.config.store import conf_dir
from loralab.errors import Problem

_PLUGINS = {  # of Hydra -> the extra that brings them
    "hydra/sweeper/optuna": "search",
    "hydra/launcher/joblib": "cluster",
    "hydra/launcher/submitit_local": "cluster",
    "hydra/launcher/submitit_slurm": "cluster",
}
_PRESETS = ("experiment", "sweep", "hparams_search", "debug")  # groups that a run does without


def reword(error: BaseException, override: str, beside: Sequence[str] = ()) -> Problem:
    """Return what an override, or a file of `conf/` where it is empty, has done wrong.

    Args:
        error: What composing raised.
        override: The one at fault.
        beside: Those that compose, on top of which it was tried.
    """
    if isinstance(error, UnicodeDecodeError):
        subject = override or "conf"
        return Problem(subject, f"{subject}: the file is not UTF-8 text; save it as UTF-8.")
    if isinstance(error, MissingConfigException):
        return _missing_option(error, override)
    if isinstance(error, OverrideParseException):
        return not_an_override(override)
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
    problem = _of_a_list(override) or _of_a_key(cause, override, beside)
    file = re.match(r"In '([^']+)': ", str(error))
    if problem is None:
        first, *rest = str(error).splitlines() or [type(error).__name__]
        reason = (rest[0] if file and rest else first).rstrip(".:")
        subject = override or "conf/train.yaml"
        problem = Problem(subject, f"{subject} does not compose: {reason}.")
    if file and file[1] != "train":  # the mistake is in a file, not on the command line
        return Problem(problem.key, f"In {file[1]}.yaml: {problem}")
    return problem


def not_an_override(argument: str) -> Problem:
    """Return the problem of an argument that Hydra cannot read."""
    return Problem(
        argument,
        f"{argument!r} is not an override; write key=value, and quote values with special "
        "characters twice: 'key=\"value\"'.",
    )


def _of_a_key(cause: BaseException | None, override: str, beside: Sequence[str]) -> Problem | None:
    """Return the problem when the error names a key of ours, else None."""
    key = str(getattr(cause, "full_key", None) or "").split("[")[0]  # a list's item: the list
    if not key:
        return None
    if isinstance(cause, ValidationError):
        value = getattr(cause, "value", None)
        return _wrong_value(key, override.partition("=")[2] if value is None else value)
    return _unknown_key(key, beside) if isinstance(cause, OmegaConfBaseException) else None


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
    missing = (error.missing_cfg_file or override).strip("/")
    group, _, option = missing.rpartition("/")
    key, _, value = override.lstrip("+").partition("=")
    if missing == f"{key}/{value}":  # an option may have slashes too
        group, option = key, value
    options = list(error.options or ())
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


def _unknown_key(key: str, beside: Sequence[str]) -> Problem:
    if key.split(".")[0] in _PRESETS:
        text = f"{key} is not an option; a file of that group begins with # @package _global_."
        return Problem(key, text)
    parent, _, name = key.rpartition(".")
    recipe = parent.split(".")[0]
    if recipe in ("optimizer", "trainer", "callbacks"):
        keys = _composed_keys(parent, beside)
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


def _composed_keys(key: str, overrides: Sequence[str]) -> list[Any]:
    node = OmegaConf.select(compose("train", overrides=list(overrides)), key)
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

"""What `loralab describe` says of a group or of one option."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from loralab.app.composition import neutral_config
from loralab.app.settings.beyond import NEAREST, SAME
from loralab.app.settings.network import BLOCK_LISTS
from loralab.config.parse import describe_type, nearest, walk_options
from loralab.config.records import RunConfig
from loralab.config.settings_table import sd_scripts_names, settings
from loralab.config.store import conf_dir
from loralab.errors import ConfigError, Problem

_RECIPES = ("optimizer", "trainer", "callbacks")
Row = tuple[str, str, str, str, str, str]


def _foreign_names() -> dict[str, str]:
    """Return what sd-scripts calls our options, the 65 settings and those beyond."""
    beyond = {**SAME, **NEAREST, **{name: key for name, (key, _) in BLOCK_LISTS.items()}}
    return {key: name for name, key in beyond.items()} | sd_scripts_names()


def show_option(name: str) -> None:
    """Print a group's options, or all there is to say of one.

    Raises:
        ConfigError: There is no such group or option.
    """
    rows = describe(name)
    options = _group_options(name)
    console = Console(width=140)
    if options:
        print(f"{name}={'|'.join(options)}")
    if not rows:  # presets, which hold options of all groups
        for option in options:
            print(f"  {option}: {_first_line(conf_dir() / name / f'{option}.yaml')}")
        return
    table = Table("option", "takes", "range", "default", "meaning", "in sd-scripts")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def describe(name: str) -> list[Row]:
    """Return key, type, range, default, meaning and sd-scripts' name of the options of a name.

    Args:
        name: A group or an option; or what sd-scripts or the guide of the 65 settings call one.

    Raises:
        ConfigError: There is no such group or option.
    """
    every = _all_rows()
    name = re.sub(r"\[\d+\]", "[]", name)  # one of a list is like all
    rows = [row for row in every if row[0] == name or row[0].startswith((f"{name}.", f"{name}["))]
    rows = rows or [row for row in every if _is_called(row, name)]
    if not rows and not _group_options(name):
        groups = {row[0].rpartition(".")[0] for row in every} - {""}
        hint = nearest(name, {row[0] for row in every} | groups | settings().keys())
        if not hint.startswith("Did"):
            tops = sorted({group.split(".")[0] for group in groups})
            hint = f"Groups: {', '.join(tops)}."
        raise ConfigError(Problem(name, f"{name} is neither a group nor an option. {hint}"))
    return rows


def _is_called(row: Row, name: str) -> bool:
    setting = settings().get(name)
    return name in row[5].split(", ") or (setting is not None and row[0] in setting.keys)


def _all_rows() -> list[Row]:
    defaults, foreign = neutral_config(), _foreign_names()
    rows: list[Row] = []
    for key, item, _ in walk_options(RunConfig):
        if key not in _RECIPES:
            low, high = item.metadata["low"], item.metadata["high"]
            span = "" if low is high is None else f"{_bound(low)} … {_bound(high)}".strip()
            default = "" if "[]" in key else _word(OmegaConf.select(defaults, key))
            rows.append((key, describe_type(item), span, default, item.metadata["help"],
                         foreign.get(key, "")))  # fmt: skip
    for group in _RECIPES:
        rows += _recipe_rows(group, defaults[group], foreign)
    return rows


def _recipe_rows(key: str, recipe: DictConfig, foreign: dict[str, str]) -> list[Row]:
    """Return the arguments of a recipe, whose meaning is that of what the recipe calls."""
    target = str(recipe.get("_target_", ""))
    meanings = {key: row.meaning for row in settings().values() for key in row.keys}
    rows: list[Row] = []
    for name, value in recipe.items():
        inner = f"{key}.{name!s}"
        if isinstance(value, DictConfig):
            rows += _recipe_rows(inner, value, foreign)
        elif not str(name).startswith("_"):
            meaning = meanings.get(inner, f"Argument of {target.rpartition('.')[2]}.")
            rows.append((inner, _kind(value), "", _word(value), meaning,
                         foreign.get(inner, "")))  # fmt: skip
    return rows


def _kind(value: Any) -> str:
    """Say in words what an argument takes, by the value it has."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return words.get(type(value), "a list" if isinstance(value, ListConfig) else "")


def _group_options(name: str) -> list[str]:
    folder = conf_dir() / name
    return sorted(file.stem for file in folder.glob("*.yaml")) if "." not in name else []


def _first_line(file: Path) -> str:
    """Return what the first comment of a file says, Hydra's own one apart."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in lines if line[:2] == "# " and "@package" not in line), "")


def _bound(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _word(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(getattr(value, "name", value))

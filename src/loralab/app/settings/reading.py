"""A settings file -> settings by their names here, each of its type; mistakes are told.

Neither sd-scripts' TOML nor the JSON of its launchers is checked by the program that reads it: a
misspelt name is kept and never read, a text in place of a number goes on as a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from loralab.app.settings.casts import cast
from loralab.app.settings.formats import Raw, read_raw
from loralab.app.settings.forms import NOTHING, Option, options_of_forms
from loralab.app.settings.original import Format, Original, Verdict
from loralab.app.settings.vocabulary import (
    CHOICES,
    GUI_NAMES,
    GUI_ONLY,
    METADATA_NAMES,
    NETWORK_ARGS,
    SD_SCRIPTS_DEFAULTS,
    WRAPPER_DEFAULTS,
    kinds,
    launcher_names,
    option_names,
)
from loralab.config.parse import nearest
from loralab.config.settings_table import settings
from loralab.errors import ConfigError, Problem

_DATASET_KEYS = ("datasets", "general")
# These hold numbers as text by their nature; a TOML has types of its own.
_TEXT_FORMATS = (Format.gui, Format.command, Format.metadata, Format.launcher)
_FOLLOWED = ("config_file", "dataset_config")
_ARGUMENT = re.compile(r"(\w+)=((?:\([^)]*\)|\[[^\]]*\]|[^,])*)")  # of a call: name=value, ...


def read_settings(path: Path, *, skip: Collection[str] = ()) -> Original:
    """Read a settings file.

    Args:
        path: The file; its format is found by its ending and content.
        skip: Names that are left out; the file cannot change this list.

    Raises:
        ConfigError: The file cannot be read, or nothing is called like a name to skip.
    """
    raw = read_raw(path)
    original = Original(path, raw.format, findings=list(raw.findings))
    values = _with_followed(original, raw)
    skipped = _skipped(skip, values)
    for word, name, value in _renamed(original, values):
        original.words[word] = name
        if {word, name} & skipped:
            original.note(Verdict.skipped, name, "left out as asked.")
        elif value in (None, "") and raw.format is Format.launcher and name in settings():
            _keep(original, word, name, value)  # said to be nothing, which is not left unsaid
        elif name == "network_args":
            _spread(original, value, skipped)
        elif (known := typed(original, name, value)) is not None:
            _keep(original, word, name, known)
    _skip_in_datasets(original, skipped)
    _fill_defaults(original, skipped)
    return original


def _keep(original: Original, word: str, name: str, value: Any) -> None:
    if name in original.given and original.values[name] != value:
        other = next(w for w, known in original.words.items() if known == name and w != word)
        original.note(Verdict.mistake, name, f"is given twice, as {other} and as {word}: "
                      f"{original.values[name]} and {value}; the latter counts.")  # fmt: skip
    original.values[name] = value
    original.given.add(name)


def _with_followed(original: Original, raw: Raw) -> dict[str, Any]:
    """Return a file's settings with those of the files that it names beneath them."""
    values = dict(raw.values)
    if raw.format is Format.dataset_toml:
        original.datasets = _tables(original, values)
        return {name: value for name, value in values.items() if name not in _DATASET_KEYS}
    for name, wanted in zip(_FOLLOWED, (Format.training_toml, Format.dataset_toml), strict=True):
        if values.get(name) in NOTHING or not isinstance(values[name], str):
            continue
        place = values.pop(name)
        original.words[name] = name
        file = next((file for file in _candidates(original.path, place) if file.is_file()), None)
        other = read_raw(file) if file else None
        if other is None or other.format is not wanted:
            text = f"{place} is no {wanted.value} that is found from here; give its place, or load "
            original.note(Verdict.no_equivalent, name, text + "it by itself.")
        else:
            original.note(Verdict.mapped, name, f"{file} is read along.")
            original.findings += other.findings
            if wanted is Format.dataset_toml:
                original.datasets = _tables(original, other.values)
                for folder in ("train_data_dir", "reg_data_dir", "in_json"):
                    if values.pop(folder, None) not in NOTHING:
                        original.note(Verdict.no_equivalent, folder, f"{name} overrules it.")
            else:
                values = {**other.values, **values}
    return values


def _candidates(path: Path, place: str) -> Iterator[Path]:
    for text in (place, f"{place}.toml"):
        yield from (path.parent / text, Path(text))


def _tables(original: Original, raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the general section and the datasets; what is no table is told."""
    general, datasets = raw.get("general", {}), raw["datasets"]
    tables = [general, *(datasets if isinstance(datasets, list) else [datasets])]
    for table in tables:
        if not isinstance(table, dict):
            raise ConfigError(Problem(
                str(original.path), f"{original.path} has {table!r} where a table of a dataset "
                "belongs; write [[datasets]] and [[datasets.subsets]].",
            ))  # fmt: skip
    return tables


def _skipped(skip: Collection[str], raw: Mapping[str, Any]) -> set[str]:
    """Return the settings to skip.

    Raises:
        ConfigError: Nothing is called like that.
    """
    known = {**{name: name for name in (*raw, *GUI_ONLY, *METADATA_NAMES)}, **GUI_NAMES,
             **option_names(), **launcher_names()}  # fmt: skip
    names = [name.strip() for name in skip]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(*(
            Problem("--skip", f"--skip names {name}, which is no setting. {_hint(name, known)}")
            for name in unknown
        ))  # fmt: skip
    return {*names, *(known[name] for name in names)}


def _hint(name: str, known: Collection[str]) -> str:
    found = nearest(name, known)
    return found if found.startswith("Did you mean") else "Leave it out."


def _renamed(original: Original, raw: Mapping[str, Any]) -> Iterator[Option]:
    """Yield settings under the names used here; names of no program are told."""
    is_launcher = original.format is Format.launcher
    names = launcher_names() if is_launcher else option_names()
    options: Iterator[Option] = ((name, name, value) for name, value in raw.items())
    if original.format is Format.gui:
        options = options_of_forms(original, raw)
    elif original.format is Format.metadata:
        options = _of_metadata(original, raw)
    elif is_launcher:  # the names of other programs win over its own
        options = iter(sorted(options, key=lambda option: option[0] not in settings()))
    for word, name, value in options:
        if name in names:
            is_share = not (is_launcher and name == "lr_warmup") or cast("number", value) is None
            yield word, names[name], value if is_share else cast("number", value) / 100
        elif name in GUI_ONLY or name == "noise_offset_type":
            original.words[word] = name
            if value is not None:
                original.note(Verdict.no_equivalent, name, "is for the launching program alone.")
        elif name != "list_of_json_to_run":  # the launcher's own dead key
            original.words[word] = name
            hint = nearest(name, {*names, *GUI_NAMES})
            hint = f" {hint}" if hint.startswith("Did you mean") else ""
            original.note(Verdict.mistake, name, f"is no setting of that program.{hint}")


def _of_metadata(original: Original, raw: Mapping[str, Any]) -> Iterator[Option]:
    """Yield the options that a file's metadata keeps; the rest only describes it."""
    version = raw.get("ss_base_model_version", "")
    if version.startswith("sdxl"):
        yield "ss_base_model_version", "sdxl", True
    if version.endswith("_v"):
        yield "ss_base_model_version", "v_parameterization", True
    known = option_names()
    for name, value in raw.items():
        original.words[name] = name
        if name == "ss_network_args" and value not in NOTHING:
            yield name, "network_args", _arguments(original, name, str(value))
        elif name == "ss_optimizer" and value not in NOTHING:
            called, _, inside = str(value).partition("(")
            yield name, "optimizer_type", called
            pairs = _ARGUMENT.findall(inside.removesuffix(")"))
            yield name, "optimizer_args", [f"{key}={text}" for key, text in pairs]
        elif name.startswith("ss_"):
            option = METADATA_NAMES.get(name, name.removeprefix("ss_"))
            if option in ("pretrained_model_name_or_path", "vae") and value not in NOTHING:
                text = f"only the name of the file is kept, {value}; its place must be told."
                original.note(Verdict.no_equivalent, option, text)
                original.words[name] = option
            elif option == "resolution":
                yield name, option, value.strip("()").replace(" ", "")
            elif option in known:
                yield name, option, value


def _arguments(original: Original, name: str, text: str) -> list[str]:
    try:
        return [f"{key}={value}" for key, value in json.loads(text).items()]
    except (ValueError, AttributeError):
        original.note(Verdict.mistake, name, f"is {text!r}, which is no table of arguments.")
        return []


def _spread(original: Original, value: Any, skipped: Collection[str]) -> None:
    """Make arguments of the network module, written NAME=VALUE, settings of their own."""
    texts = typed(original, "network_args", value) or []
    if texts:
        del original.words[
            "network_args" if "network_args" in original.words else "ss_network_args"
        ]
    for text in texts:
        name, equals, argument = text.partition("=")
        name = {"constrain": "constraint"}.get(name.strip(), name.strip())
        original.words[name] = name
        if not equals or name not in NETWORK_ARGS:
            what = "is no argument of a network module" if equals else "is not NAME=VALUE"
            original.note(Verdict.mistake, name, f"{what}. {_hint(name, NETWORK_ARGS)}")
        elif name in skipped:
            original.note(Verdict.skipped, name, "left out as asked.")
        elif (known := typed(original, name, argument.strip("\"'"), is_text=True)) is not None:
            _keep(original, name, name, known)


def typed(
    original: Original, name: str, value: Any, *, told: str = "", is_text: bool = False
) -> Any:
    """Return a value of the setting's type; None is not given, or told as a mistake.

    Args:
        told: What it is called in what is told; its name by default.
        is_text: Whether it is a text by its nature, as in a list of arguments.
    """
    if isinstance(value, str | None) and value in NOTHING:
        return None
    kind = "size" if name == "train_resolution" else kinds().get(name, "text")
    found, told = cast(kind, value), told or name
    if found is None:
        word = {"flag": "true or false", "whole": "a whole number", "number": "a number",
                "list": "a list of texts", "size": "a side in px, or WIDTH,HEIGHT,",
                }.get(kind, "text")  # fmt: skip
        original.note(Verdict.mistake, told, f"is {value!r}, where {word} belongs.")
        return None
    if kind == "flag" and isinstance(value, str) and original.format is not Format.metadata and (
        not is_text
    ):  # fmt: skip
        takes = (
            "a flag takes no value, and sd-scripts refuses one"
            if original.format is Format.command
            else "any text but an empty one is true there"
        )
        original.note(Verdict.mistake, told, f"is the text {value!r}; {takes}. It is read as "
                      f"{str(found).lower()} here.")  # fmt: skip
    is_number = kind in ("whole", "number") and isinstance(value, str)
    if is_number and not is_text and original.format not in _TEXT_FORMATS:
        original.note(
            Verdict.mistake, told, f"is the text {value!r}; sd-scripts keeps it as a text. It is "
            f"read as the number {found:g} here.",
        )  # fmt: skip
    return found if _is_allowed(original, name, found, told) else None


def _is_allowed(original: Original, name: str, found: Any, told: str) -> bool:
    allowed = CHOICES.get(name)
    if not allowed or found in allowed or (name == "max_clip_token_length" and found == 0):
        return True
    hint = nearest(str(found), [str(word) for word in allowed])
    original.note(Verdict.mistake, told, f"is {found}, which that program does not know. {hint}")
    return False


def _skip_in_datasets(original: Original, skipped: Collection[str]) -> None:
    """Take what is to be skipped out of the tables of datasets."""
    tables = [*original.datasets]
    for dataset in original.datasets:
        subsets = dataset.get("subsets")
        tables += [table for table in subsets if isinstance(table, dict)] if isinstance(
            subsets, list) else []  # fmt: skip
    names = option_names()
    for table in tables:
        for name in [name for name in table if {name, names.get(name, name)} & set(skipped)]:
            del table[name]
            original.note(Verdict.skipped, name, "left out as asked.")


def _fill_defaults(original: Original, skipped: Collection[str]) -> None:
    """Add what the program takes for the settings that the file does not give."""
    if original.format is Format.metadata:
        return  # says nothing about what is not in it
    is_launcher = original.format is Format.launcher
    defaults = WRAPPER_DEFAULTS if is_launcher else SD_SCRIPTS_DEFAULTS
    values = original.values
    for name, value in defaults.items():
        if name not in skipped:
            values.setdefault(name, value)
    if not is_launcher and not values.get("num_epochs") and "max_steps" not in values:
        values["max_steps"] = 1600

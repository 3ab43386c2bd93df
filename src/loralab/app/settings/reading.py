"""A settings file -> settings by their names here, each of its type; mistakes are told.

Neither sd-scripts' TOML nor the JSON of its launchers is checked by the program that reads it: a
misspelt name is kept and never read, a text in place of a number goes on as a text.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from loralab.app.settings.formats import command_line, read_raw
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

_NOTHING = (None, "", "None")
_DATASET_KEYS = ("datasets", "general")
# These hold numbers as text by their nature; a TOML has types of its own.
_TEXT_FORMATS = (Format.gui, Format.command, Format.metadata, Format.launcher)


def read_settings(path: Path, *, skip: Collection[str] = ()) -> Original:
    """Read a settings file.

    Args:
        path: The file; its format is found by its ending and content.
        skip: Names that are left out; the file cannot change this list.

    Raises:
        ConfigError: The file cannot be read.
    """
    format_, raw = read_raw(path)
    original = Original(path, format_)
    if format_ is Format.dataset_toml:
        original.datasets = [raw.get("general", {}), *raw["datasets"]]
        raw = {name: value for name, value in raw.items() if name not in _DATASET_KEYS}
    for name, value in _renamed(original, raw):
        if name in skip or _option(name) in skip:
            original.note(Verdict.skipped, name, "left out as asked.")
        elif value is None and format_ is Format.launcher and name in settings():
            original.values[name] = None  # said to be nothing, which is not left unsaid
            original.given.add(name)
        elif (known := _typed(original, name, value)) is not None:
            original.values[name] = known
            original.given.add(name)
    _fill_defaults(original)
    return original


def _renamed(original: Original, raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield settings under the names used here; names of no program are told."""
    options = {Format.gui: _of_gui, Format.metadata: _of_metadata}.get(original.format)
    is_launcher = original.format is Format.launcher
    names = launcher_names() if is_launcher else option_names()
    for name, value in options(original, raw) if options else raw.items():
        if name in names:
            yield names[name], value
        elif name != "list_of_json_to_run":  # the launcher's own dead key
            hint = nearest(name, {*names, *GUI_NAMES})
            hint = f" {hint}" if hint.startswith("Did you mean") else ""
            original.note(Verdict.mistake, name, f"is no setting of that program.{hint}")


def _of_gui(original: Original, raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what kohya_ss' forms say, in the words of sd-scripts; empty fields are not given."""
    for name, value in raw.items():
        if name == "lr_warmup" and value not in _NOTHING:
            yield "lr_warmup_steps", float(value) / 100  # per cent of all steps
        elif name == "xformers":
            yield "xformers", value in (True, "xformers")
        elif name == "additional_parameters" and str(value).strip():
            yield from command_line(str(value), original.path).items()
        elif name == "optimizer_args" and isinstance(value, str):
            yield name, value.split()
        elif name == "max_train_epochs":
            if value not in (*_NOTHING, 0, "0"):
                yield name, value
        elif name == "epoch" and raw.get("max_train_epochs") not in (*_NOTHING, 0, "0"):
            continue
        elif name == "LoRA_type":
            yield "network_module", _gui_module(str(value))
            yield "algo", str(value).rpartition("/")[2].lower() if "LyCORIS" in str(value) else None
        elif name == "noise_offset_type":
            continue  # which of both the form shows; the other one is 0
        elif name == "num_cpu_threads_per_process" or name in GUI_ONLY:
            if value not in (*_NOTHING, 0, False, "None", 1, 2):
                original.note(Verdict.no_equivalent, name, "is for the launching program alone.")
        else:
            yield GUI_NAMES.get(name, name), value


def _gui_module(kind: str) -> str:
    return "lycoris.kohya" if kind.startswith("LyCORIS") else "networks.lora"


def _of_metadata(original: Original, raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the options that a file's metadata keeps; what only describes it is passed over."""
    version = raw.get("ss_base_model_version", "")
    if version.startswith("sdxl"):
        yield "sdxl", True
    if version.endswith("_v"):
        yield "v_parameterization", True
    arguments = raw.get("ss_network_args")
    if arguments not in _NOTHING:
        yield "network_args", [f"{k}={v}" for k, v in json.loads(str(arguments)).items()]
    known = option_names()
    for name, value in raw.items():
        if name.startswith("ss_") and name != "ss_network_args":
            option = METADATA_NAMES.get(name, name.removeprefix("ss_"))
            if option in ("pretrained_model_name_or_path", "vae") and value not in _NOTHING:
                text = f"only the name of the file is kept, {value}; its place must be told."
                original.note(Verdict.no_equivalent, option, text)
                continue
            if option == "resolution":
                value = value.strip("()").replace(" ", "")
            if option in known:
                yield option, value


def _option(name: str) -> str:
    """Return what sd-scripts calls a setting."""
    row = settings().get(name)
    return row.sd_scripts or name if row else name


def _typed(original: Original, name: str, value: Any) -> Any:
    """Return a value of the setting's type; None is not given, or told as a mistake."""
    if value in _NOTHING and not isinstance(value, bool):
        return None
    kind = kinds().get(name, "text" if name in NETWORK_ARGS else None)
    found = _size(value) if name == "train_resolution" else _CASTS[kind or "text"](value)
    if found is None:
        word = {"flag": "true or false", "whole": "a whole number", "number": "a number",
                "list": "a list of texts"}.get(str(kind), "text")  # fmt: skip
        original.note(Verdict.mistake, name, f"is {value!r}, where {word} belongs.")
        return None
    if (
        kind in ("whole", "number") and isinstance(value, str)
        and original.format not in _TEXT_FORMATS
    ):  # fmt: skip
        original.note(
            Verdict.mistake, name, f"is the text {value!r}; sd-scripts keeps it as a text. It is "
            f"read as the number {found:g} here.",
        )  # fmt: skip
    allowed = CHOICES.get(name)
    if allowed and found not in allowed and not (name == "max_clip_token_length" and found == 0):
        texts = [str(word) for word in allowed]
        hint = nearest(str(found), texts)
        original.note(
            Verdict.mistake, name, f"is {found}, which that program does not know. {hint}"
        )
        return None
    return found


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, list):  # one rate for each text encoder: the first counts for all
        value = value[0] if value else None
    try:
        if isinstance(value, str) and value.endswith("%"):
            return float(value[:-1]) / 100
        return float(value)
    except (TypeError, ValueError):
        return None


def _size(value: Any) -> int | str | None:
    """Return a side in px, or a text of width and height."""
    whole = _whole(value) if not isinstance(value, list) else None
    return whole if whole is not None else _text(value)


def _flag(value: Any) -> bool | None:
    words = {"true": True, "false": False, "1": True, "0": False}
    return value if isinstance(value, bool) else words.get(str(value).lower())


def _text(value: Any) -> str | None:
    return None if isinstance(value, dict | bool) else str(
        ",".join(map(str, value)) if isinstance(value, list) else value
    )  # fmt: skip


def _list(value: Any) -> list[str] | None:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value) if value.startswith("[") else value.split(",")
        except (ValueError, SyntaxError):
            return None
    return [str(item) for item in value] if isinstance(value, list | tuple) else None


_CASTS = {"flag": _flag, "whole": _whole, "number": _number, "text": _text, "list": _list}


def _fill_defaults(original: Original) -> None:
    """Add what the program takes for the settings that the file does not give."""
    if original.format is Format.metadata:
        return  # says nothing about what is not in it
    is_launcher = original.format is Format.launcher
    defaults = WRAPPER_DEFAULTS if is_launcher else SD_SCRIPTS_DEFAULTS
    skipped = {finding.name for finding in original.findings if finding.verdict is Verdict.skipped}
    values = original.values
    for name, value in defaults.items():
        if name not in skipped:
            values.setdefault(name, value)
    if not is_launcher and not values.get("num_epochs") and "max_steps" not in values:
        values["max_steps"] = 1600

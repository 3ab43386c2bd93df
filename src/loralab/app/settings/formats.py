"""Files of six formats -> their settings under their own names, as they stand there."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loralab.app.settings.commands import command_line
from loralab.app.settings.original import Finding, Format, Verdict
from loralab.config.settings_table import settings
from loralab.errors import ConfigError, Problem

ENDINGS = ".json, .toml, .safetensors, .txt, .sh, .bat or .ps1"
_WEIGHTS = (".safetensors",)


@dataclass
class Raw:
    """What a file is, what it says, and what is wrong with it before anything is read into it."""

    format: Format
    values: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)


def read_raw(path: Path) -> Raw:
    """Return what a file is and what it says.

    Raises:
        ConfigError: The file is missing, damaged or of no known format.
    """
    if not path.is_file():
        raise _refusal(path, "is not a file; name a settings file.")
    ending = path.suffix.lower()
    if ending in _WEIGHTS:
        return Raw(Format.metadata, _metadata(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise _refusal(path, f"cannot be read as text ({error}).") from error
    if ending == ".json":
        return _json(path, text)
    if ending == ".toml":
        return _toml(path, text)
    if ending in (".txt", ".sh", ".bat", ".ps1"):
        return Raw(Format.command, *command_line(text, path))
    raise _refusal(path, f"ends in {ending or 'nothing'}; it must end in {ENDINGS}.")


def _json(path: Path, text: str) -> Raw:
    findings: list[Finding] = []

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return _joined(pairs, findings)

    try:
        content = json.loads(text, object_pairs_hook=table, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise _refusal(path, f"is not JSON: {error}.") from error
    if not isinstance(content, dict) or not content:
        raise _refusal(path, "is not a table of settings.")
    if "datasets" in content:
        return Raw(Format.dataset_toml, content, findings)
    own = settings().keys() - {row.sd_scripts for row in settings().values()}
    is_launcher = len(own & content.keys()) > 1 or set(content) <= settings().keys()
    return Raw(Format.launcher if is_launcher else Format.gui, content, findings)


def _toml(path: Path, text: str) -> Raw:
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _refusal(path, f"is not TOML: {error}.") from error
    if not content:
        raise _refusal(path, "holds no settings.")
    if "datasets" in content:
        return Raw(Format.dataset_toml, content)
    findings: list[Finding] = []
    pairs: list[tuple[str, Any]] = []
    for name, value in content.items():  # sections are for the eye only
        pairs += value.items() if isinstance(value, Mapping) else [(name, value)]
    return Raw(Format.training_toml, _joined(pairs, findings), findings)


def _joined(pairs: Iterable[tuple[str, Any]], findings: list[Finding]) -> dict[str, Any]:
    """Return pairs as a table; of a name that stands there twice the last value counts."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found and found[name] != value:
            text = f"is given twice, {found[name]} and {value}; the last one counts."
            findings.append(Finding(Verdict.mistake, name, text))
        found[name] = value
    return found


def _metadata(path: Path) -> dict[str, Any]:
    from loralab.adapters.container import open_tensors  # loads torch

    with open_tensors(path) as file:
        found = dict(file.metadata)
    if not any(name.startswith("ss_") for name in found):
        raise _refusal(path, "has no metadata of sd-scripts (fields that begin with ss_).")
    return found


def _refusal(path: Path, what: str) -> ConfigError:
    return ConfigError(Problem(str(path), f"{path} {what}"))

"""Files of five formats -> their settings under their own names, as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loralab.app.settings.original import Format
from loralab.app.settings.vocabulary import kinds, spelling
from loralab.config.settings_table import settings
from loralab.errors import ConfigError, Problem

ENDINGS = ".json, .toml, .safetensors, .txt, .sh, .bat or .ps1"
_WEIGHTS = (".safetensors",)


def read_raw(path: Path) -> tuple[Format, dict[str, Any]]:
    """Return what a file is and what it says.

    Raises:
        ConfigError: The file is missing, damaged or of no known format.
    """
    if not path.is_file():
        raise _refusal(path, "is not a file; name a settings file.")
    ending = path.suffix.lower()
    if ending in _WEIGHTS:
        return Format.metadata, _metadata(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise _refusal(path, f"cannot be read as text ({error}).") from error
    if ending == ".json":
        return _json(path, text)
    if ending == ".toml":
        return _toml(path, text)
    if ending in (".txt", ".sh", ".bat", ".ps1"):
        return Format.command, command_line(text, path)
    raise _refusal(path, f"ends in {ending or 'nothing'}; it must end in {ENDINGS}.")


def command_line(text: str, path: Path) -> dict[str, Any]:
    """Return the options of a command line; a flag without a value is True.

    Raises:
        ConfigError: Quotes do not close, or there is no option.
    """
    joined = re.sub(r"[\\^`]\s*\n", " ", text)
    lines = [line for line in joined.splitlines() if not line.lstrip().startswith(("#", "REM "))]
    try:
        words = shlex.split(" ".join(lines))
    except ValueError as error:
        raise _refusal(path, f"is not a command line: {error}.") from error
    found: dict[str, Any] = {}
    if any("sdxl_train_network" in word for word in words):
        found["sdxl"] = True
    name = None
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            found[name] = value if value else True
        elif name is not None:
            before = found[name]
            is_list = kinds().get(spelling().get(name, name)) == "list"
            found[name] = [*(before if isinstance(before, list) else []), word] if is_list else (
                word if before is True else before
            )  # fmt: skip
    if not found:
        raise _refusal(path, "has no options like --network_dim=16.")
    launcher = ("num_cpu_threads_per_process", "num_processes", "num_machines", "dynamo_backend",
                "multi_gpu", "gpu_ids", "main_process_port")  # fmt: skip
    return {name: value for name, value in found.items() if name not in launcher}


def _json(path: Path, text: str) -> tuple[Format, dict[str, Any]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise _refusal(path, f"is not JSON: {error}.") from error
    if not isinstance(content, dict) or not content:
        raise _refusal(path, "is not a table of settings.")
    own = settings().keys() - {row.sd_scripts for row in settings().values()}
    is_launcher = len(own & content.keys()) > 1 or set(content) <= settings().keys()
    return (Format.launcher if is_launcher else Format.gui), content


def _toml(path: Path, text: str) -> tuple[Format, dict[str, Any]]:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _refusal(path, f"is not TOML: {error}.") from error
    if not content:
        raise _refusal(path, "holds no settings.")
    if "datasets" in content:
        return Format.dataset_toml, content
    flat: dict[str, Any] = {}
    for name, value in content.items():  # sections are for the eye only
        flat |= value if isinstance(value, Mapping) else {name: value}
    return Format.training_toml, flat


def _metadata(path: Path) -> dict[str, Any]:
    from loralab.adapters.container import open_tensors  # loads torch

    with open_tensors(path) as file:
        found = dict(file.metadata)
    if not any(name.startswith("ss_") for name in found):
        raise _refusal(path, "has no metadata of sd-scripts (fields that begin with ss_).")
    return found


def _refusal(path: Path, what: str) -> ConfigError:
    return ConfigError(Problem(str(path), f"{path} {what}"))

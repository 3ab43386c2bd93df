"""The 65 settings of the widely read guide of February 2023, and what is true of each.

The guide lists the settings of LoRA_Easy_Training_Scripts, a launcher of sd-scripts, and lets a
language model explain them. Nearly half of the explanations are wrong; where a wrong one still
describes something worth having, it is built under a name of its own. The rows are in
`settings/*.yaml`; `docs/settings.md` is made from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "settings"
FEATURES = "features.yaml"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of the guide.

    Attributes:
        name: As the guide and the launcher spell it.
        keys: Our configuration keys that do the same.
        command: What does it where no key does.
        sd_scripts: The option of sd-scripts; None when the launcher itself did it.
        meaning: What it truly does.
        claim: What the guide says it does.
        verdict: Whether that is so: "so", "partly" or "not so".
        feature: The feature built for a wrong reading.
        test: The test that proves the effect, as ``FILE::FUNCTION``.
    """

    name: str
    keys: tuple[str, ...] = ()
    command: str | None = None
    sd_scripts: str | None
    meaning: str
    claim: str
    verdict: str
    feature: str | None = None
    test: str


@dataclass(frozen=True, kw_only=True)
class Feature:
    """What a wrong reading of a setting describes, under a name of its own."""

    name: str
    settings: tuple[str, ...]
    keys: tuple[str, ...]
    command: str | None = None
    what: str
    test: str


@cache
def settings() -> dict[str, Setting]:
    """Return the 65 settings by name, in the guide's order."""
    files = sorted(path for path in FOLDER.glob("*.yaml") if path.name != FEATURES)
    rows = {name: row for file in files for name, row in _load(file).items()}
    return {name: Setting(name=name, **row) for name, row in rows.items()}


@cache
def features() -> dict[str, Feature]:
    """Return the separate features by name."""
    return {name: Feature(name=name, **row) for name, row in _load(FOLDER / FEATURES).items()}


@cache
def sd_scripts_names() -> dict[str, str]:
    """Return for each of our keys the options of sd-scripts that do the same."""
    found: dict[str, list[str]] = {}
    for row in settings().values():
        for key in row.keys if row.sd_scripts else ():
            found.setdefault(key, []).append(str(row.sd_scripts))
    return {key: ", ".join(names) for key, names in found.items()}


def _load(file: Path) -> dict[str, dict[str, Any]]:
    rows = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {
        name: {
            key: tuple(value) if isinstance(value, list) else value for key, value in row.items()
        }
        for name, row in rows.items()
    }

"""The 65 settings of a run as JSON, in the launcher's words: `settings.json` of a run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from loralab.app.composition import compose_config
from loralab.app.settings.backward import settings_of
from loralab.config.records import RunConfig
from loralab.errors import ConfigError, Problem
from loralab.files import write_text

SETTINGS_FILE = "settings.json"


def settings_json(config: RunConfig) -> str:
    """Return the settings of a run as JSON text."""
    return json.dumps(settings_of(config), indent=4, ensure_ascii=False) + "\n"


def save_settings(out: Path, overrides: Sequence[str], *, config_dir: Path | None = None) -> int:
    """Write the settings that a training with these overrides would have; return how many.

    Raises:
        ConfigError: Every problem of the overrides; or the file is there already.
    """
    if out.exists():
        raise ConfigError(Problem(str(out), f"{out} is there already; choose another name."))
    config = compose_config(overrides, config_dir=config_dir)
    text = settings_json(config)
    write_text(out, text)
    return len(json.loads(text))

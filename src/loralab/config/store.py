"""Schemas and resolvers for Hydra, and where the YAML files are."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from loralab import demo
from loralab.config.records import RunConfig

LONGEST_NAME = 200  # characters; file systems end at 255 bytes


def conf_dir() -> Path:
    """Return the folder of YAML files: the checkout's `conf/`, else the installed copy."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1] / "conf"
    return checkout if (checkout / "train.yaml").is_file() else package / "conf"


def register() -> None:
    """Make the root schema and the `demo` resolver known to Hydra; safe to call twice."""
    ConfigStore.instance().store(name="run_schema", node=RunConfig, provider="loralab")
    OmegaConf.register_new_resolver("demo", _demo_path, replace=True)
    OmegaConf.register_new_resolver("sweep_job", _sweep_job, replace=True)


def _demo_path(what: str) -> str:
    """Return the path of the embedded base or of one of its image sets."""
    return str(demo.base_dir() if what == "base" else demo.images_dir(what))


def _sweep_job(overrides: Sequence[str], number: str, params: Mapping[str, Any] | None) -> str:
    """Return the folder name of a job: the settings that the sweep varies, or its number.

    Args:
        overrides: The job's overrides.
        number: Its place in the sweep.
        params: What a preset or a search varies, by key.
    """
    varied = set(params or {})
    parser = OverridesParser.create()
    for argument in sys.argv[1:]:
        if "=" in argument and not argument.startswith("-"):
            override = parser.parse_override(argument)
            if override.is_sweep_override():
                varied.add(override.get_key_element())
    settings = sorted(text for text in overrides if text.partition("=")[0] in varied)
    name = ",".join(settings).replace("/", "-").replace("\\", "-")
    return name if 0 < len(name) <= LONGEST_NAME else str(number)

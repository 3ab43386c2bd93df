"""Plain configurations to start from, as a finished run stores them."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from loralab.config.store import conf_dir, register


def composed(*overrides: str) -> Any:
    """Return `conf/train.yaml` with overrides, the way `train.py` composes it."""
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@pytest.fixture(scope="session")
def _plain_yaml() -> str:
    raw = composed("~experiment", "model.path=base", "data.image_dir=images", "run_id=first")
    return OmegaConf.to_yaml(raw, resolve=True)


@pytest.fixture
def plain(_plain_yaml: str) -> dict[str, Any]:
    """A valid configuration as nested plain data, to be changed by the test."""
    data = OmegaConf.to_container(OmegaConf.create(_plain_yaml))
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def put(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Set a value by its dotted key and return the whole; `sources[]` is a list of one source."""
    node = data
    *groups, name = key.split(".")
    for group in groups:
        if group.endswith("[]"):
            node[group[:-2]] = [{"image_dir": "photos"}]
            node = node[group[:-2]][0]
        else:
            node = node[group]
    node[name] = value
    return data

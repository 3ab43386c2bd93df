"""The table of the 65 settings: complete, and about things that exist."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from loralab.app.settings_reference import settings_page
from loralab.config.parse import walk_options
from loralab.config.records import RunConfig
from loralab.config.settings_table import Feature, Setting, features, settings
from loralab.config.store import conf_dir

ROOT = Path(__file__).parents[2]
ROWS: list[Setting | Feature] = [*settings().values(), *features().values()]


@cache
def all_tests() -> set[str]:
    """Return every test of the suite as ``FILE::FUNCTION``."""
    return {
        f"{file.name}::{node.name}"
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }


@cache
def all_keys() -> set[str]:
    """Return every option of the records, every group, and the arguments of recipes in `conf/`."""
    import yaml

    keys = {key for key, _, _ in walk_options(RunConfig)}
    keys |= {path.name for path in conf_dir().iterdir() if path.is_dir()}
    for name, file in (("trainer", "default"), ("optimizer", "adamw"), ("callbacks", "default")):
        content = yaml.safe_load((conf_dir() / name / f"{file}.yaml").read_text(encoding="utf-8"))
        for key, value in content.items():
            keys.add(f"{name}.{key}")
            keys |= (
                {f"{name}.{key}.{inner}" for inner in value} if isinstance(value, dict) else set()
            )
    return keys


def test_there_are_65_settings_and_21_features() -> None:
    assert (len(settings()), len(features())) == (65, 21)
    assert [*settings()][:3] == ["base_model", "img_folder", "output_folder"]
    assert [*settings()][-2:] == ["v2", "v_parameterization"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_keys_and_tests_of_a_row_exist(row: Setting | Feature) -> None:
    assert row.keys or row.command, "nothing does it"
    assert set(row.keys) <= all_keys()
    assert row.test in all_tests()


def test_settings_and_features_name_each_other() -> None:
    for row in settings().values():
        assert row.verdict in ("so", "partly", "not so")
        if row.feature is not None:
            assert row.name in features()[row.feature].settings
    for feature in features().values():
        assert all(settings()[name].feature == feature.name for name in feature.settings)


def test_docs_settings_md_is_what_make_docs_writes() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run `make docs`"

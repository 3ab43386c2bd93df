"""No field without an effect test: every record, every recipe in `conf/`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from loralab.config.parse import walk_options
from loralab.config.records import RunConfig
from loralab.config.store import conf_dir
from tests.effects.registry import registered_effects

RECIPES = ("optimizer", "trainer", "callbacks")


def record_keys() -> set[str]:
    """Return the key of every leaf option of the records."""
    return {key for key, _, _ in walk_options(RunConfig)} - set(RECIPES)


def recipe_keys() -> set[str]:
    """Return the key of every recipe argument that a file in `conf/` gives, presets included."""
    keys: set[str] = set()
    for file in conf_dir().rglob("*.yaml"):
        content = OmegaConf.to_container(OmegaConf.load(file))
        assert isinstance(content, Mapping)
        group = file.relative_to(conf_dir()).parts[0]
        if group in RECIPES:
            content = {group: content}
        for name in RECIPES:
            keys |= set(argument_keys(name, content.get(name) or {}))
    return keys


def argument_keys(group: str, recipe: Mapping[Any, Any]) -> Iterator[str]:
    for name, value in recipe.items():
        if name == "defaults" or str(name).startswith("_"):
            continue
        yield f"{group}.{name}"
        if group == "callbacks" and isinstance(value, Mapping):
            yield from argument_keys(f"{group}.{name}", value)


def test_every_field_has_an_effect_test_and_every_effect_test_a_field() -> None:
    fields = record_keys() | recipe_keys()
    registered = registered_effects(Path(__file__).parent)
    without = sorted(fields - registered.keys())
    assert without == [], "fields without an effect test; add one marked @effect(KEY)"
    unknown = sorted(registered.keys() - fields)
    assert unknown == [], "effect tests of fields that do not exist"


def test_the_walk_sees_the_fields_there_are() -> None:
    records, recipes = record_keys(), recipe_keys()
    assert len(records) >= 65, f"only {len(records)} fields of records seen"
    assert len(recipes) >= 18, f"only {len(recipes)} arguments of recipes seen"
    assert {"seed", "data.buckets.step", "adapter.text_encoder.lr"} <= records
    assert {"optimizer.betas", "trainer.detect_anomaly", "callbacks.progress"} <= recipes
    assert "callbacks.checkpoint.keep_last" in recipes

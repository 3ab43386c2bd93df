"""What `compat.kind` switches, that it contradicts nobody in silence, and where it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loralab.config.choices import Compat, DropoutPlace, Reduction
from loralab.config.compat import SWITCHES
from loralab.config.parse import parse_config, to_plain, walk_options
from loralab.config.records import RunConfig
from loralab.errors import ConfigError
from tests.config.conftest import put

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-sd-scripts.md"
CASES = [
    (kind.name, key, value)
    for kind, switches in SWITCHES.items()
    for key, value in switches.items()
]


def values(config: RunConfig) -> dict[str, Any]:
    return {key: value for key, _, value in walk_options(config)}


@pytest.mark.parametrize(("kind", "key", "value"), CASES)
def test_a_switch_changes_its_option_and_our_own_rule_is_another(
    plain: dict[str, Any], kind: str, key: str, value: Any
) -> None:
    assert values(parse_config(plain))[key] != value
    assert values(parse_config(put(plain, "compat.kind", kind)))[key] == value


def test_nothing_else_is_switched(plain: dict[str, Any]) -> None:
    ours = values(parse_config(plain))
    for kind, switches in SWITCHES.items():
        theirs = values(parse_config(put(plain, "compat.kind", kind.name)))
        assert {key for key in ours if ours[key] != theirs[key]} == {*switches, "compat.kind"} - (
            {"compat.kind"} if kind is Compat.none else set()
        )


def test_an_adapter_without_places_of_dropout_keeps_the_only_one(plain: dict[str, Any]) -> None:
    config = parse_config(put(put(plain, "compat.kind", "sd_scripts"), "adapter.kind", "loha"))
    assert config.adapter.dropout_place is DropoutPlace.input
    assert config.objective.reduction is Reduction.by_count


def test_a_stored_configuration_of_a_switched_run_parses_to_itself(plain: dict[str, Any]) -> None:
    config = parse_config(put(plain, "compat.kind", "sd_scripts"))
    assert parse_config(to_plain(config)) == config


def test_a_third_value_is_refused_with_all_other_problems(
    plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A row for the test: an option of more than two values, 0.1 by default.
    monkeypatch.setitem(SWITCHES[Compat.sd_scripts], "objective.huber_c", 0.2)
    chosen = put(put(plain, "compat.kind", "sd_scripts"), "objective.loss", "huber")
    raw = put(chosen, "objective.huber_c", 0.3)
    with pytest.raises(ConfigError) as caught:
        parse_config(put(raw, "objective.min_timestep", 999) | {"name": "a/b"})
    found = {problem.key: problem.message for problem in caught.value.problems}
    assert found["objective.huber_c"] == (
        "objective.huber_c is 0.3, but compat.kind=sd_scripts sets it to 0.2; leave one of them "
        "out."
    )
    assert found.keys() == {"objective.huber_c", "name"}
    assert parse_config(put(raw, "objective.huber_c", 0.2)).objective.huber_c == 0.2


@pytest.mark.parametrize(("kind", "key", "value"), CASES)
def test_every_switch_has_its_row_in_the_documentation(kind: str, key: str, value: Any) -> None:
    word = str(getattr(value, "name", value)).lower()
    assert f"`{key}={word}`" in PAGE.read_text(encoding="utf-8")

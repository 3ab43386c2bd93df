"""`loralab lr-find`: refused at once where there is nothing to find."""

from __future__ import annotations

from pathlib import Path

import pytest

from loralab.app.composition import compose_config
from loralab.app.rate_finder import find_rate
from loralab.errors import ConfigError


def find(*overrides: str, low: float = 1e-5, high: float = 0.1) -> float | None:
    return find_rate(
        compose_config(overrides), low=low, high=high, steps=10, images=1, chart=Path("unused.png")
    )


def test_an_optimizer_that_finds_its_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Prodigy finds its rate itself.*optimizer=adamw"):
        find("optimizer=prodigy")


def test_a_range_that_does_not_rise_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--low is 0\.1 and --high is 0\.01"):
        find(low=0.1, high=0.01)


def test_a_misspelt_override_is_answered_as_by_training() -> None:
    with pytest.raises(ConfigError, match=r"adapter\.rnk is not an option\. Did you mean"):
        find("adapter.rnk=4")

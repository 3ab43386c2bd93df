"""The range test on the tiny model: what it says, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from loralab.app.logs import quiet_libraries
from loralab.app.rate_finder import find_rate
from tests.effects.runs import Tiny


def test_it_says_a_rate_inside_the_range_and_leaves_the_chart_alone(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet_libraries()
    config = tiny.config(f"output_dir={tmp_path}", "trainer.max_steps=1000")
    found = find_rate(config, low=1e-4, high=0.1, steps=10, images=2, chart=None)
    said = capsys.readouterr().out
    assert said.startswith("10 steps in ")
    assert found is not None
    assert 1e-4 <= found <= 0.1
    assert said.rstrip().endswith(f"optimizer.lr={found:.1e}")
    assert [path.name for path in tmp_path.rglob("*")] == ["lr-find-tiny.png"]
    again = find_rate(config, low=1e-4, high=0.1, steps=10, images=2, chart=None)
    assert again == found, "the same images, noise and order"

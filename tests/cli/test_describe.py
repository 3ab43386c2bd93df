"""What a new user asks first: `--help`, `describe`, `check`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loralab.app.describe import describe, show_option
from loralab.app.dry_run import check_run
from loralab.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_an_option_is_described_with_its_type_range_default_and_foreign_name() -> None:
    [(key, takes, span, default, meaning, foreign)] = describe("data.captions.caption_dropout")
    assert (key, takes, span) == ("data.captions.caption_dropout", "a number", "0 … 1")
    assert (default, foreign) == ("0.05", "caption_dropout_rate")
    assert meaning == "Probability of training an image with an empty caption."
    [(*_, clip)] = describe("objective.min_timestep")
    assert clip == "min_timestep"  # beyond the 65 settings


def test_a_group_is_described_with_the_options_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    rows = describe("scheduler")
    assert [row[0] for row in rows][:2] == ["scheduler.kind", "scheduler.warmup_steps"]
    assert {row[0] for row in describe("optimizer")} >= {"optimizer.lr", "optimizer.betas"}
    assert ("data.sources[].repeats", "a whole number") in [row[:2] for row in describe("data")]
    show_option("validation")
    assert "early_stopping" in capsys.readouterr().out.splitlines()[0]


def test_what_other_programs_call_an_option_finds_it() -> None:
    for name in ("net_dim", "network_dim"):
        assert [row[0] for row in describe(name)] == ["adapter.rank"]
    assert [row[0] for row in describe("min_snr_gamma")] == ["objective.min_snr_gamma"]
    assert [row[0] for row in describe("data.sources[1].repeats")] == ["data.sources[].repeats"]


def test_arguments_of_recipes_are_described_in_words() -> None:
    [(_, takes, _, default, meaning, foreign)] = describe("optimizer.lr")
    assert (takes, default, foreign) == ("a number", "0.0001", "learning_rate")
    assert meaning == "The optimizer's rate, used by every part that has none of its own."
    assert {row[1] for row in describe("trainer")} <= {
        "a whole number", "a number", "text", "true or false", ""
    }  # fmt: skip
    assert ("optimizer.betas", "a list") in [row[:2] for row in describe("optimizer")]


def test_presets_are_told_with_the_first_line_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    show_option("experiment")
    shown = capsys.readouterr().out
    assert "experiment=demo|" in shown
    assert "  sd15_style: SD 1.5 style" in shown


def test_a_wrong_name_gets_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean adapter\.rank\?"):
        describe("adapter.rnk")
    with pytest.raises(ConfigError, match="Groups: adapter, "):
        describe("zzz")


def test_check_writes_what_it_is_asked_for_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan"
    check_run([f"output_dir={tmp_path / 'outputs'}", "adapter.rank=6"], out=out)
    text = capsys.readouterr().out
    for words in ("buckets", "240 in all", "▁", "cyanotype 57", "nothing was trained"):
        assert words in text
    assert sorted(path.name for path in out.iterdir()) == [
        "config.yaml", "lr.png", "settings.json", "tags.txt"
    ]  # fmt: skip
    assert json.loads((out / "settings.json").read_text(encoding="utf-8"))["net_dim"] == 6
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]
    with pytest.raises(ConfigError, match="is there already"):
        check_run([], out=out)


def test_check_refuses_what_training_refuses() -> None:
    with pytest.raises(ConfigError) as refusal:
        check_run(["experiment=demo", "adapter.rnk=1", "data.batch_size=0"])
    assert len(refusal.value.problems) == 2


def test_help_of_training_is_short_and_has_five_examples() -> None:
    done = subprocess.run(
        [sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert sum(line.startswith("  python train.py") for line in lines) == 5
    assert len(lines) <= 45

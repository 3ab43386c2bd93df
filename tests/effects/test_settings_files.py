"""The settings of a run in the words of the guide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loralab.app.settings.saving import save_settings
from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import Tiny


def test_every_run_folder_holds_its_settings(tiny: Tiny) -> None:
    run = tiny.run("adapter.alpha=3", "data.captions.keep_tags=2", "trainer.max_steps=1")
    saved = json.loads((run.folder / "settings.json").read_text(encoding="utf-8"))
    assert len(saved) == 65
    assert (saved["net_dim"], saved["alpha"], saved["keep_tokens"]) == (2, 3.0, 2)
    assert (saved["max_steps"], saved["base_model"]) == (1, str(tiny.base))


@effect("compat.kept_settings")
def test_settings_that_mean_nothing_here_are_kept_in_the_file(tiny: Tiny) -> None:
    run = tiny.run(
        "+compat.kept_settings={log_dir: logs, net_dim: 9, save_precision: null}",
        "trainer.max_steps=1",
    )
    saved = json.loads((run.folder / "settings.json").read_text(encoding="utf-8"))
    # Without a logger a folder of logs would mean another thing, and so would a rank of 9.
    assert (saved["log_dir"], saved["net_dim"]) == (None, 2)
    assert saved["save_precision"] is None  # what sd-scripts calls fp32


@effect("compat.kept_settings")
def test_a_kept_setting_that_is_none_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"compat\.kept_settings has net_dimm"):
        tiny.config("+compat.kept_settings={net_dimm: 4}")


def test_settings_are_saved_without_training_and_nothing_is_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    overrides = ["~experiment", "model.path=b", "data.image_dir=i", "adapter.rank=5"]
    assert save_settings(out, overrides) == 65
    assert json.loads(out.read_text(encoding="utf-8"))["net_dim"] == 5
    with pytest.raises(ConfigError, match="is there already"):
        save_settings(out, overrides)


def test_wrong_overrides_are_refused_as_a_training_refuses_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        save_settings(tmp_path / "out.json", ["adapter.rnk=4", "data.batch_size=0"])
    assert [problem.key for problem in refusal.value.problems] == ["adapter.rnk", "data.batch_size"]
    assert list(tmp_path.iterdir()) == []

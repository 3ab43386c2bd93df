"""A folder of settings files, trained one after another by `loralab queue`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loralab.app.queue import run_queue
from loralab.errors import ConfigError
from tests.integration.cli import ENVIRONMENT

OVERRIDES = ("trainer=cpu", "callbacks.checkpoint.every_n_steps=5", "cpu_threads=1")


def write_settings(path: Path, world: Path, output: Path, **changes: Any) -> None:
    """Write a launcher's JSON of a tiny run."""
    images = output.parent / "numbered" / "1_shape"
    if not images.exists():
        shutil.copytree(world / "images", images)
    values = {
        "base_model": str(world / "base"), "img_folder": str(images.parent),
        "output_folder": str(output), "change_output_name": path.stem, "net_dim": 2, "alpha": 2,
        "mixed_precision": "no", "use_8bit_adam": False, "clip_skip": 1, "batch_size": 2,
        "train_resolution": 64, "bucket_reso_steps": 16, "min_bucket_resolution": 32,
        "max_bucket_resolution": 128, "max_clip_token_length": 75, "num_workers": 0,
        "max_steps": 2, "save_every_n_epochs": None, "scheduler": "constant",
    }  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**values, **changes}), encoding="utf-8")


def start(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start the queue as a process of its own."""
    program = "from loralab.cli.main import main; main()"
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-c", program, "queue", str(folder), *OVERRIDES],
            stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_files_are_run_in_order_and_sorted_by_outcome(world: Path, output: Path) -> None:
    queue = output.parent / "queue"
    write_settings(queue / "b.json", world, output)
    write_settings(queue / "a.json", world, output, base_model="nowhere")
    log = output.parent / "log.txt"
    assert start(queue, log).wait(timeout=900) == 2  # one failed for the user to mend
    assert names(queue) == ["complete", "failed"]
    assert names(queue / "complete") == ["b.json"]
    assert names(queue / "failed") == ["a.json", "a.json.log"]
    assert "model.path is nowhere" in (queue / "failed" / "a.json.log").read_text()
    text = log.read_text()
    assert text.index("1 of 2: a.json") < text.index("2 of 2: b.json")
    [run] = (output / "b").glob("*/run.json")
    assert json.loads(run.read_text())["state"] == "finished"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_queue_goes_on_where_it_was(world: Path, output: Path) -> None:
    queue, log = output.parent / "queue", output.parent / "log.txt"
    for name, changes in (
        ("1", {}), ("2", {"net_dim": "many", "train_resolution": -3}), ("3", {"max_steps": 300}),
        ("4", {}),
    ):  # fmt: skip
        write_settings(queue / f"{name}.json", world, output, **changes)
    (queue / "2.json").write_text("{ broken", encoding="utf-8")
    process = start(queue, log)
    while not (saved := list((output / "3").glob("*/checkpoints/step-*.ckpt"))):
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert names(queue) == ["3.json", "4.json", "complete", "failed"]
    assert (names(queue / "complete"), names(queue / "failed")[0]) == (["1.json"], "2.json")
    time.sleep(1.0)  # the training ends with the queue
    steps = sorted(path.name for path in saved[0].parent.iterdir())
    time.sleep(1.0)
    assert sorted(path.name for path in saved[0].parent.iterdir()) == steps
    assert start(queue, log).wait(timeout=900) == 0
    assert names(queue) == ["complete", "failed"]
    assert names(queue / "complete") == ["1.json", "3.json", "4.json"]
    for name in "134":
        [run] = (output / name).glob("*/run.json")  # one folder each: the third went on in its own
        assert json.loads(run.read_text())["state"] == "finished"
    assert "continues from" in log.read_text()


def test_a_folder_without_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder of settings files"):
        run_queue(tmp_path / "none")
    with pytest.raises(ConfigError, match="holds no settings file to run"):
        run_queue(tmp_path)


def test_a_file_that_cannot_be_read_fails_without_a_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.json").write_text("{", encoding="utf-8")
    assert run_queue(tmp_path, stop_on_error=True) == 2
    assert names(tmp_path) == ["b.json", "failed"]  # b waits: the queue was to stop
    assert "a.json is not JSON" in (tmp_path / "failed" / "a.json.log").read_text()
    (tmp_path / "a.json").write_text("[", encoding="utf-8")
    assert run_queue(tmp_path) == 2
    assert names(tmp_path / "failed") == [
        "a-2.json", "a-2.json.log", "a.json", "a.json.log", "b.json", "b.json.log"
    ]  # fmt: skip
    assert "is not JSON" in capsys.readouterr().out


def test_two_queues_do_not_share_a_folder(tmp_path: Path) -> None:
    from loralab.app.queue import _only_one

    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    with _only_one(tmp_path), pytest.raises(ConfigError, match="worked on by another queue"):
        run_queue(tmp_path)
    assert names(tmp_path) == ["a.json"]


def test_what_is_no_text_fails_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.yaml").write_text("name: [", encoding="utf-8")
    assert run_queue(tmp_path) == 2
    assert names(tmp_path / "failed") == ["a.yaml", "a.yaml.log", "b.yaml", "b.yaml.log"]
    assert "cannot be read as text" in (tmp_path / "failed" / "a.yaml.log").read_text()


def test_a_folder_that_cannot_hold_the_queues_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    (tmp_path / ".queue").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be written"):
        run_queue(tmp_path)
    assert names(tmp_path) == ["a.json"]


def test_a_dry_run_of_a_queue_leaves_the_files_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    assert run_queue(tmp_path, ["check_only=true"]) == 2
    assert names(tmp_path) == ["a.json"]


def test_a_file_that_comes_again_is_a_new_run(tmp_path: Path) -> None:
    from loralab.app.queue import _forget, _run_id

    file, other = tmp_path / "a.json", tmp_path / "a.toml"
    for path in (file, other):
        path.write_text("{}", encoding="utf-8")
    first, is_new = _run_id(tmp_path, file, "queued-a_json")
    assert is_new
    assert _run_id(tmp_path, file, "queued-a_json") == (first, False)
    assert _run_id(tmp_path, other, "queued-a_toml")[0] != first
    _forget(tmp_path, file)
    assert _run_id(tmp_path, file, "queued-a_json")[1]
    assert not _run_id(tmp_path, other, "queued-a_toml")[1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_file_changed_while_it_is_trained_is_left_as_it_is(world: Path, output: Path) -> None:
    queue, log = output.parent / "queue", output.parent / "log.txt"
    write_settings(queue / "a.json", world, output)
    process = start(queue, log)
    while "a.json" not in log.read_text() or not (queue / ".queue" / "runs.json").exists():
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    write_settings(queue / "a.json", world, output, net_dim=3)
    assert process.wait(timeout=900) == 0
    assert names(queue) == ["a.json"]
    assert "was changed or taken away meanwhile" in log.read_text()
    assert json.loads((queue / "a.json").read_text())["net_dim"] == 3

"""A run killed in mid-epoch and continued is the run that was never killed, bit for bit."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.integration.artifacts import (
    adapter,
    curves,
    differing,
    last_checkpoint,
    names,
    pictures,
)
from tests.integration.cli import Cli, tiny_run
from tests.tiny import make_images
from tests.tiny_clip import make_tiny_clip

pytestmark = pytest.mark.xdist_group("resume")

EVERYTHING_RANDOM = [
    "trainer.max_steps=-1",
    "trainer.max_epochs=2",
    "trainer.accumulate_grad_batches=2",
    "trainer.log_every_n_steps=2",
    "adapter.dropout=0.2",
    "data.flip_probability=0.5",
    "data.captions.shuffle_tags=true",
    "data.captions.tag_dropout=0.2",
    "data.captions.caption_dropout=0.2",
    "validation.every_n_steps=3",  # as often as checkpoints: a kill between them loses nothing
    "validation.train_probe=true",
    "validation.keep_best=true",
    "validation.patience=99",
    "callbacks.checkpoint.every_n_steps=3",
    "callbacks.checkpoint.keep_last=9",
    "export.every_n_steps=3",
    "preview.prompts=[a red circle]",
    "preview.steps=1",
    "preview.every_n_steps=3",
    "name=run",
]
STEPS = 14  # 24 images in 3 buckets by pairs, two of them a step, twice


@pytest.fixture(scope="module")
def settings(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of two epochs in which everything that can be random is; output_dir is left out."""
    images = tmp_path_factory.mktemp("resume") / "images"
    make_images(images, count=24, seed=3)
    tiny = tiny_run(world / "base", images, world / "held_out", Path("unset"))
    return [text for text in tiny if not text.startswith("output_dir")] + EVERYTHING_RANDOM


@pytest.fixture(scope="module")
def reference(cli: Cli, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of the run that nobody interrupted; its run_id is `a`."""
    output = tmp_path_factory.mktemp("reference")
    outcome = cli(*settings, f"output_dir={output}", "run_id=a")
    assert outcome.code == 0, outcome.text
    return output


@pytest.fixture
def interrupted(reference: Path, output: Path) -> Path:
    """A copy of the reference as a kill after step 6 would have left it."""
    shutil.copytree(reference, output)
    folder = output / "run" / "a"
    for path in (folder / "checkpoints").glob("step-*.ckpt"):
        if path.name > "step-000006.ckpt":
            path.unlink()
    for path in (folder / "adapters").iterdir():
        if not path.name.startswith(("run-step000003", "run-step000006")):
            path.unlink()
    state = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**state, "state": "running"}))
    return output


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_continued_run_equals_the_uninterrupted_one(
    cli: Cli, settings: list[str], reference: Path, output: Path, num_workers: int
) -> None:
    command = [*settings, f"output_dir={output}", "run_id=a", f"data.num_workers={num_workers}"]
    folder = output / "run" / "a"
    process = cli.start(*command)
    process.wait_for((folder / "checkpoints" / "step-000003.ckpt").is_file)
    process.send(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    assert json.loads((folder / "run.json").read_text())["state"] == "running"
    assert not (folder / "adapters" / "run.safetensors").exists()

    outcome = cli(*command, "resume=auto")

    assert outcome.code == 0, outcome.text
    assert "continues from" in outcome.text
    expected = reference / "run" / "a"
    assert differing(adapter(expected), adapter(folder)) == []
    ours, theirs = last_checkpoint(folder), last_checkpoint(expected)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks"):
        assert differing(theirs[key], ours[key], key) == []
    assert ours["global_step"] == theirs["global_step"] == STEPS
    assert curves(folder) == curves(expected)
    assert [step for step, _ in curves(folder)["train/loss"]] == list(range(2, STEPS + 1, 2))
    assert [step for step, _ in curves(folder)["val/loss"]] == [3, 6, 9, 12, STEPS]
    assert pictures(folder) == pictures(expected) == {"preview/a red circle": [0, 3, 6, 9, 12, 14]}
    assert names(folder) == names(expected)


SLOW = ("previews/step-000000.png", "previews/step-000006.png", "adapters/run.",
        "adapters/run-step000006.diffusers",
        "checkpoints/best-000003", "adapters/run-step000006", "preview.png")  # fmt: skip


@pytest.mark.parametrize(
    "file",
    [
        "checkpoints/step-000006",
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_run_killed_while_a_file_is_written_leaves_those_of_a_whole_run(
    cli: Cli, settings: list[str], reference: Path, output: Path, file: str
) -> None:
    command = [*settings, f"output_dir={output}", "run_id=a"]
    folder, expected = output / "run" / "a", reference / "run" / "a"
    place, begin = folder / file, Path(file).name
    process = cli.start(*command)
    process.wait_for(lambda: any(place.parent.glob(f"*{begin}*")))  # its forerunner has a dot
    process.send(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL

    outcome = cli(*command, "resume=auto")

    assert outcome.code == 0, outcome.text
    assert names(folder) == names(expected)
    assert pictures(folder) == pictures(expected)
    assert curves(folder) == curves(expected)
    assert differing(adapter(expected), adapter(folder)) == []
    shown = folder / "preview.png", expected / "preview.png"
    assert shown[0].read_bytes() == shown[1].read_bytes()


def test_run_killed_after_its_last_checkpoint_has_drawn_and_judged_the_end(
    cli: Cli, tiny: list[str], output: Path, tmp_path: Path
) -> None:
    """Lightning skips a run whose steps are done, so nothing of the end may come later."""
    command = [
        *tiny, "run_id=a", "preview.prompts=[a red circle]", "preview.steps=1",
        f"result_metrics.clip_path={make_tiny_clip(tmp_path / 'clip')}",
        "validation.keep_best=true",
    ]  # fmt: skip
    folder, whole = output / "smoke" / "a", tmp_path / "whole" / "smoke" / "a"
    assert cli(*command, f"output_dir={tmp_path / 'whole'}").code == 0
    process = cli.start(*command)
    process.wait_for((folder / "checkpoints" / "step-000004.ckpt").is_file)
    process.send(signal.SIGKILL)
    process.wait()

    outcome = cli(*command, "resume=auto")

    assert outcome.code == 0, outcome.text
    assert names(folder) == names(whole)
    assert pictures(folder) == pictures(whole) == {"preview/a red circle": [0, 4]}
    assert curves(folder) == curves(whole)
    ours, theirs = (json.loads((at / "run.json").read_text()) for at in (folder, whole))
    assert ours["metrics"] == theirs["metrics"]
    assert "result/clip_prompt" in ours["metrics"]
    for card in ("smoke.md", "smoke-best.md"):
        ours, theirs = (
            [line for line in (at / "adapters" / card).read_text().splitlines()
             if ".safetensors" not in line]  # their hashes cover the time of writing
            for at in (folder, whole)
        )  # fmt: skip
        assert ours == theirs


def test_resume_takes_the_path_of_a_checkpoint(
    cli: Cli, settings: list[str], reference: Path, interrupted: Path
) -> None:
    folder = interrupted / "run" / "a"
    checkpoint = folder / "checkpoints" / "step-000003.ckpt"

    outcome = cli(*settings, f"output_dir={interrupted}", f"resume={checkpoint}")

    assert outcome.code == 0, outcome.text
    assert differing(adapter(reference / "run" / "a"), adapter(folder)) == []
    assert curves(folder) == curves(reference / "run" / "a")


def test_resume_without_run_id_takes_the_newest_unfinished_run(
    cli: Cli, settings: list[str], interrupted: Path
) -> None:
    for name, state, started in (
        ("b", "finished", "2100-01-01T00:00:00+0000"),
        ("c", "running", "2000-01-01T00:00:00+0000"),  # later by its name alone
    ):
        other = interrupted / "run" / name
        other.mkdir()
        (other / "run.json").write_text(json.dumps({"state": state, "started": started}))

    outcome = cli(*settings, f"output_dir={interrupted}", "resume=auto", "check_only=true")

    assert outcome.code == 0, outcome.text
    path = interrupted / "run" / "a" / "checkpoints" / "step-000006.ckpt"
    assert str(path) in unfolded(outcome.text)


def test_checkpoints_are_ordered_by_number(
    cli: Cli, settings: list[str], interrupted: Path
) -> None:
    place = interrupted / "run" / "a" / "checkpoints"
    shutil.copy(place / "step-000006.ckpt", place / "step-1000000.ckpt")

    outcome = cli(*settings, f"output_dir={interrupted}", "resume=auto", "check_only=true")

    assert "step-1000000.ckpt" in unfolded(outcome.text)


def test_finished_run_says_so_and_does_nothing(
    cli: Cli, settings: list[str], reference: Path
) -> None:
    before = tree(reference)

    outcome = cli(*settings, f"output_dir={reference}", "run_id=a", "resume=auto")

    assert outcome.code == 0
    assert "already finished" in outcome.text
    assert tree(reference) == before


def test_run_without_resume_does_not_overwrite_another(
    cli: Cli, settings: list[str], reference: Path
) -> None:
    before = tree(reference)

    outcome = cli(*settings, f"output_dir={reference}", "run_id=a")

    assert outcome.code == 2
    assert "run_id is a" in outcome.text
    assert "resume=auto" in outcome.text
    assert tree(reference) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("adapter.rank=2", ["adapter.rank is 2", "has 4"]),
        ("optimizer.lr=5e-4", ["optimizer.lr is 0.0005", "has 0.001"]),
        ("trainer.precision=bf16-mixed", ["trainer.precision is 'bf16-mixed'", "'32-true'"]),
        ("trainer.max_epochs=3", ["trainer.max_epochs is 3", "has 2"]),
        ("objective=min_snr", ["objective.weighting is 'min_snr'", "has 'constant'"]),
    ],
)
def test_change_that_alters_the_result_is_refused_with_both_values(
    cli: Cli, settings: list[str], reference: Path, interrupted: Path, change: str, words: list[str]
) -> None:
    before = tree(interrupted)

    outcome = cli(*settings, f"output_dir={interrupted}", "run_id=a", "resume=auto", change)

    assert outcome.code == 2, outcome.text
    assert all(word in outcome.text for word in [*words, "set it back"]), outcome.text
    assert "one problem" in outcome.text or change.startswith("adapter.rank")
    assert tree(interrupted) == before


def test_edited_configuration_of_the_run_is_refused(cli: Cli, interrupted: Path) -> None:
    folder = interrupted / "run" / "a"
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("lr: 0.001", "lr: 0.5"))

    outcome = cli(f"resume={folder}")

    assert outcome.code == 2, outcome.text
    assert "optimizer.lr is 0.5" in outcome.text
    assert "has 0.001; set it back" in outcome.text


def test_moved_run_folder_is_continued_where_it_is(
    cli: Cli, reference: Path, interrupted: Path, tmp_path: Path
) -> None:
    folder, expected = tmp_path / "elsewhere", reference / "run" / "a"
    shutil.move(interrupted / "run" / "a", folder)

    outcome = cli(f"resume={folder}", "data.num_workers=1")

    assert outcome.code == 0, outcome.text
    assert differing(adapter(expected), adapter(folder)) == []
    assert curves(folder) == curves(expected)
    assert names(folder) == names(expected), "its files are still its own"


def test_changed_images_are_refused_by_name(
    cli: Cli, settings: list[str], interrupted: Path, tmp_path: Path
) -> None:
    (old,) = [text for text in settings if text.startswith("data.image_dir=")]
    images = tmp_path / "images"
    shutil.copytree(old.partition("=")[2], images)
    (images / "image_005.txt").write_text("something else\n")
    for ending in (".png", ".txt"):
        (images / f"image_006{ending}").rename(images / f"photo{ending}")

    outcome = cli(
        *settings,
        f"output_dir={interrupted}",
        f"data.image_dir={images}",
        "run_id=a",
        "resume=auto",
    )

    assert outcome.code == 2
    for words in ("images or captions have changed", "images/image_005.png has changed",
                  "images/image_006.png is gone", "images/photo.png is new"):  # fmt: skip
        assert words in outcome.text, outcome.text


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def turn_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def drop_optimizer(path: Path) -> None:
    torch.save({**torch.load(path, weights_only=True), "optimizer_states": []}, path)


def drop_moments(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["optimizer_states"][0]["state"] = {}
    torch.save(content, path)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        pytest.param(drop_moments, marks=pytest.mark.slow),
        pytest.param(turn_a_bit, marks=pytest.mark.slow),
        pytest.param(drop_optimizer, marks=pytest.mark.slow),
    ],
)
def test_damaged_checkpoint_names_the_older_one_that_is_whole(
    cli: Cli, settings: list[str], reference: Path, interrupted: Path,
    damage: Callable[[Path], None],
) -> None:  # fmt: skip
    command = [*settings, f"output_dir={interrupted}", "run_id=a"]
    folder = interrupted / "run" / "a"
    older, path = (folder / "checkpoints" / f"step-00000{n}.ckpt" for n in (3, 6))
    damage(path)

    refused = cli(*command, "resume=auto")

    assert refused.code == 2
    text = " ".join(refused.text.split())
    assert f"resume: {path} is damaged or not a checkpoint of loralab; set " in text
    (remedy,) = re.findall(r"set (resume=\S+) to", text)
    assert remedy == f"resume={older}"
    assert "one problem" in text
    assert "Traceback" not in text
    outcome = cli(*command, remedy)
    assert outcome.code == 0, outcome.text
    assert differing(adapter(reference / "run" / "a"), adapter(folder)) == []
    assert curves(folder) == curves(reference / "run" / "a")


def test_damaged_checkpoints_without_a_whole_one_lead_to_a_new_run(
    cli: Cli, settings: list[str], interrupted: Path
) -> None:
    command = [*settings, f"output_dir={interrupted}"]
    for path in (interrupted / "run" / "a" / "checkpoints").glob("step-*.ckpt"):
        truncate(path)

    refused = cli(*command, "run_id=a", "resume=auto")

    assert refused.code == 2
    assert "step-000006.ckpt is damaged" in refused.text
    assert "no other one is whole; start a new run without resume and run_id" in refused.text
    assert cli(*command, "check_only=true").code == 0


def test_run_killed_after_its_last_step_is_still_exported(
    cli: Cli, settings: list[str], reference: Path, interrupted: Path
) -> None:
    folder = interrupted / "run" / "a"
    name = f"step-{STEPS:06d}.ckpt"
    shutil.copy(reference / "run" / "a" / "checkpoints" / name, folder / "checkpoints" / name)

    outcome = cli(*settings, f"output_dir={interrupted}", "run_id=a", "resume=auto")

    assert outcome.code == 0, outcome.text
    assert differing(adapter(reference / "run" / "a"), adapter(folder)) == []
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    theirs = json.loads((reference / "run" / "a" / "run.json").read_text())["metrics"]
    assert metrics == theirs


def test_interrupt_finishes_the_step_saves_and_stops(
    cli: Cli, settings: list[str], reference: Path, output: Path
) -> None:
    command = [*settings, f"output_dir={output}", "run_id=a"]
    folder = output / "run" / "a"
    process = cli.start(*command)
    process.wait_for((folder / "checkpoints" / "step-000003.ckpt").is_file)
    process.send(signal.SIGINT)
    stopped = process.wait()

    assert stopped.code == 0, stopped.text
    assert "Stopping after this step" in stopped.text
    assert "run_id=a resume=auto" in stopped.text
    assert not (folder / "adapters" / "run.safetensors").exists()

    outcome = cli(*command, "resume=auto")

    assert outcome.code == 0, outcome.text
    expected = reference / "run" / "a"
    assert differing(adapter(expected), adapter(folder)) == []
    assert curves(folder) == curves(expected)
    extra = set(names(folder)) - set(names(expected))
    assert all(name.startswith("checkpoints/") for name in extra), "a stop is no end: it draws none"
    assert pictures(folder) == pictures(expected)


def tree(folder: Path) -> dict[str, int]:
    """Return size by path of all files."""
    return {str(path): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def unfolded(text: str) -> str:
    """Return the text without the table's lines and breaks."""
    return re.sub(r"[│\s]", "", text)

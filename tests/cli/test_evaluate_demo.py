"""`loralab evaluate-demo` from a trained run to table, figures and picture."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from loralab.app.demo_quality import evaluate_run
from loralab.app.logs import close_log
from loralab.app.run import run
from loralab.config.store import conf_dir, register
from loralab.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def two_sampling_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loralab.demo.evaluation.drawing.NUM_STEPS", 2)
        yield


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps of the demo, with its drawings judged at the end."""
    outputs = tmp_path_factory.mktemp("demo") / "outputs"
    register()
    own = ["~local"] if (conf_dir() / "local").is_dir() else []  # a user's own defaults
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        raw = compose(
            "train",
            overrides=[*own, "experiment=demo", "run_id=two", f"output_dir={outputs}",
                       "trainer.max_steps=2", "scheduler.warmup_steps=1", "preview=none",
                       "validation=none"],
        )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            run(raw)
        finally:
            close_log()
    return outputs / "demo" / "two"


def copy(run_folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(run_folder, target))


@pytest.mark.slow
def test_the_end_of_a_demo_run_is_judged_in_tensorboard(demo_run: Path) -> None:
    events = EventAccumulator(str(demo_run), size_guidance={"images": 0}).Reload()
    metrics = json.loads((demo_run / "run.json").read_text(encoding="utf-8"))["metrics"]
    for name in ("content_top1", "content_top5", "style_share"):
        for tag in (f"quality/{name}", f"quality/{name}_base"):
            [event] = events.Scalars(tag)
            assert event.step == 2
            assert event.value == pytest.approx(metrics[tag])
    assert [event.step for event in events.Images("quality/drawings")] == [2]
    assert (
        b"quality/content_top1"
        in events.summary_metadata["_hparams_/experiment"].SerializeToString()
    )


def test_the_command_prints_a_table_and_writes_figures_and_picture(
    demo_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(demo_run, tmp_path / "outputs" / "demo" / "two")
    (folder / "evaluation.json").unlink()
    (folder / "evaluation.png").unlink()
    evaluate_run(folder, rounds=1)
    text = capsys.readouterr().out
    for row in ("base  “noto, cat, animal”", "LoRA  “cyanotype, cat, animal”", "best possible"):
        assert row in text
    assert "24 subjects that the LoRA never saw" in text
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert found["scores"]["real"]["content_top1"] == 1
    assert found["scores"]["chance"]["content_top1"] == pytest.approx(1 / found["candidates"])
    assert set(found["scores"]) == {"base", "base_with_trigger", "lora", "real", "chance"}
    assert len(found["drawings_look_like"]["lora"]) == 24
    with Image.open(folder / "evaluation.png") as sheet:
        assert sheet.width > 1000
    assert not list(folder.glob("*.part"))


def test_the_file_draws_what_the_live_adapter_drew(demo_run: Path, tmp_path: Path) -> None:
    """The end of the run used the live adapter, the command its file; the same figures."""
    live = json.loads((demo_run / "evaluation.json").read_text(encoding="utf-8"))
    folder = copy(demo_run, tmp_path / "outputs" / "demo" / "two")
    evaluate_run(folder, rounds=1)
    read = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert read["scores"]["base"] == live["scores"]["base"]
    likeness = [
        read["drawings_look_like"]["lora"][subject] == nearest
        for subject, nearest in live["drawings_look_like"]["lora"].items()
    ]
    assert sum(likeness) >= 22  # of 24; the file is in half precision


def refusal(folder: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        evaluate_run(folder, rounds=1)
    return [str(problem) for problem in caught.value.problems]


def test_a_folder_of_runs_is_refused_with_the_name_of_one(demo_run: Path) -> None:
    [sentence] = refusal(demo_run.parent)
    assert sentence == (
        f"{demo_run.parent} holds 1 run folders; give one of them, such as {demo_run}."
    )


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == [
        f"{tmp_path} has no config.yaml; give a run folder such as outputs/demo/RUN_ID."
    ]


def test_a_configuration_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: [", encoding="utf-8")
    [sentence] = refusal(tmp_path)
    assert "cannot be read as YAML" in sentence


def test_a_run_without_its_adapter_is_refused(demo_run: Path, tmp_path: Path) -> None:
    folder = copy(demo_run, tmp_path / "two")
    shutil.rmtree(folder / "adapters")
    [sentence] = refusal(folder)
    assert sentence == (
        f"{folder / 'adapters'} holds no adapter of the run's end; finish the run first, with "
        "run_id=two resume=auto."
    )


def test_a_run_on_another_base_is_refused(demo_run: Path, tmp_path: Path) -> None:
    folder = copy(demo_run, tmp_path / "two")
    path = folder / "config.yaml"
    text = path.read_text(encoding="utf-8").replace("demo_quality: 1", "demo_quality: 0")
    lines = [
        f"  path: {tmp_path / 'other'}" if line.startswith("  path: ") else line
        for line in text.splitlines()
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    [sentence] = refusal(folder)
    assert sentence.startswith(f"{folder} was trained with model.path {tmp_path / 'other'};")

"""The run itself: its name and place, its seed, how it goes on, what it returns."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loralab.app.logs import close_log
from loralab.app.resume import with_stored_settings
from loralab.app.run import run as start_run
from loralab.errors import ConfigError, ResumeError
from tests.effects.registry import effect
from tests.effects.runs import Tiny, TinyRun, changed

HELD_OUT = "validation.fraction=0.3"
FOUR = ("trainer.max_steps=4", "callbacks.checkpoint.every_n_steps=2")


@effect("name", "run_id", "output_dir")
def test_the_folder_is_output_dir_name_and_run_id(tiny: Tiny, tmp_path: Path) -> None:
    run = tiny.run(f"output_dir={tmp_path}", "name=icons", "run_id=first")
    assert (tmp_path / "icons" / "first" / "config.yaml").is_file()
    assert run.files == ["icons.diffusers.safetensors", "icons.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["icons"]


@effect("run_id")
def test_without_a_run_id_the_folder_is_named_by_the_time(tiny: Tiny) -> None:
    built = tiny.build("run_id=null")
    assert re.fullmatch(r"\d{8}-\d{6}(-\d+)?", built.folder.path.name)


@effect("run_id")
def test_a_run_id_that_exists_is_refused(tiny: Tiny) -> None:
    run = tiny.run()
    with pytest.raises(ResumeError, match="exists already; set resume=auto"):
        tiny.run_anew(f"run_id={run.folder.name}")


@effect("seed")
def test_a_run_with_the_same_seed_is_the_same_bit_for_bit(tiny: Tiny) -> None:
    assert changed(tiny.run().adapter, tiny.run_anew().adapter) == []


@effect("seed")
def test_another_seed_trains_another_adapter(tiny: Tiny) -> None:
    one, other = tiny.run().adapter, tiny.run("seed=1").adapter
    factors = {key for key in one if not key.endswith(".alpha")}
    assert set(changed(one, other)) == factors


@effect("resume")
def test_resume_goes_on_from_a_checkpoint_to_the_same_adapter(tiny: Tiny) -> None:
    every = "callbacks.progress.every_n_steps=1"
    whole = tiny.run(*FOUR, every)
    run = tiny.run_anew(*FOUR, every)
    path = run.folder / "checkpoints" / "step-000002.ckpt"
    resumed = tiny.run_anew(*FOUR, every, f"resume={path}", f"run_id={run.folder.name}")
    assert "step 2/4" not in resumed.stdout
    assert "step 3/4" in resumed.stdout
    assert changed(whole.adapter, resumed.adapter) == []


@effect("resume")
def test_a_finished_run_is_not_run_again(tiny: Tiny) -> None:
    run = tiny.run()
    again = tiny.run_anew("resume=auto", f"run_id={run.folder.name}")
    assert again.stdout == f"{run.folder} is already finished; nothing to do.\n"


@effect("optimized_metric")
def test_a_run_returns_the_metric_it_is_asked_for(tiny: Tiny) -> None:
    run = tiny.run(HELD_OUT)
    assert run.value == run.metrics["val/loss"]
    other = tiny.run(HELD_OUT, "optimized_metric=val/loss_at_timestep/875")
    assert other.value == other.metrics["val/loss_at_timestep/875"]
    assert other.value != run.value


@effect("resume")
def test_a_run_folder_is_resumed_with_the_settings_it_was_begun_with(
    tiny: Tiny, tmp_path: Path
) -> None:
    own = ("adapter.rank=3", f"output_dir={tmp_path}", "run_id=first", "trainer.max_steps=4",
           "callbacks.checkpoint.every_n_steps=2")  # fmt: skip
    begun = tiny.run_anew(*own)
    (begun.folder / "checkpoints" / "step-000004.ckpt").unlink()
    (begun.folder / "run.json").write_text(json.dumps({**begun.state, "state": "running"}))
    given = [f"resume={begun.folder}", "callbacks.progress.every_n_steps=1"]
    raw = with_stored_settings(tiny.compose(given[0]), given)
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        start_run(raw)
    close_log()
    assert "step-000002.ckpt" in stdout.getvalue()  # where it continues from
    assert raw.callbacks.progress.every_n_steps == 1  # what is given lies over what is stored
    ended = TinyRun(None, "", begun.folder)
    assert changed(begun.adapter, ended.adapter) == []  # rank 3, and the very same weights
    with pytest.raises(ConfigError, match=r"adapter=loha stands beside resume="):
        with_stored_settings(tiny.compose(given[0]), [given[0], "adapter=loha"])


@effect("check_only")
def test_check_only_prints_the_plan_and_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    run = tiny.run("check_only=true", f"output_dir={tmp_path / 'outputs'}")
    assert "Plan of tiny" in run.stdout
    assert list(tmp_path.iterdir()) == []


@effect("cpu_threads")
def test_torch_computes_with_that_many_threads_and_the_next_run_with_its_own(tiny: Tiny) -> None:
    tiny.run("cpu_threads=3")
    assert torch.get_num_threads() == 3
    tiny.run("cpu_threads=null")
    assert torch.get_num_threads() == 1  # what the tests began with


@effect("demo_quality")
def test_drawings_of_anything_but_the_demo_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError) as refusal:
        tiny.config("demo_quality=1")
    [problem] = refusal.value.problems
    assert str(problem).startswith("demo_quality is 1, but model.path is ")
    assert "Set demo_quality=0." in str(problem)


@pytest.mark.slow
@effect("demo_quality")
def test_every_drawing_more_of_a_subject_is_judged(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loralab.demo.evaluation.drawing.NUM_STEPS", 1)
    demo = ("model=demo", "model.path=${demo:base}", "data=demo", "data.image_dir=${demo:train}",
            "trainer.max_steps=1", "logger=csv")  # fmt: skip
    assert not (tiny.run(*demo, "demo_quality=0").folder / "evaluation.json").exists()
    for count in (1, 2):
        run = tiny.run(*demo, f"demo_quality={count}")
        found = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))
        assert len(found["drawings_look_like"]["lora"]["cat face"]) == count
        assert run.metrics["quality/content_top1"] == found["scores"]["lora"]["content_top1"]
        assert run.column("quality/style_share") == [run.metrics["quality/style_share"]]


@effect("record")
def test_a_recording_holds_what_every_step_is_made_from(tiny: Tiny) -> None:
    run = tiny.run("record=true")
    content = load_file(run.folder / "recording" / "batches.safetensors")
    numbers = sorted({key.partition(".")[0] for key in content})
    assert numbers == ["000000", "000001", "000002"]
    assert sorted(path.name for path in (run.folder / "recording").iterdir()) == [
        "batches.safetensors",
        "start.safetensors",
    ]
    for number in numbers:
        latents, tokens = content[f"{number}.latents"], content[f"{number}.input_ids"]
        assert content[f"{number}.noise"].shape == latents.shape
        assert tokens.shape == (len(latents), 1, 77)
        assert content[f"{number}.loss_weight"].sum().item() == pytest.approx(1.0)
    assert changed(run.adapter, tiny.run().adapter) == []
    assert not (tiny.run().folder / "recording").exists()


@effect("record")
def test_a_recording_starts_with_its_run_or_not_at_all(tiny: Tiny) -> None:
    run = tiny.run_anew(*FOUR)
    path = run.folder / "checkpoints" / "step-000002.ckpt"
    resumed = (f"resume={path}", f"run_id={run.folder.name}", "record=true")
    with pytest.raises(ResumeError, match=r"^record is true, but the run began without it"):
        tiny.run_anew(*FOUR, *resumed)

"""What a CLIP model says of previews: the figures, where they are told, what they leave alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from loralab.errors import ConfigError
from loralab.training.callbacks.preview import Preview
from tests.effects.registry import effect
from tests.effects.runs import Tiny, changed
from tests.tiny_clip import make_tiny_clip

PROMPTS = ("red circle", "blue square")
PREVIEW = (f"preview.prompts=[{','.join(PROMPTS)}]", "preview.steps=2", "preview.every_n_steps=2")
NAMES = ("result/clip_prompt", "result/clip_image", "result/clip_image_max")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("clip") / "clip")


def judged(clip: Path, *overrides: str) -> tuple[str, ...]:
    return (*PREVIEW, "logger=csv", f"result_metrics.clip_path={clip}", *overrides)


@effect("result_metrics.clip_path")
def test_the_prompt_figure_is_the_mean_cosine_that_transformers_gives(
    tiny: Tiny, clip: Path
) -> None:
    built = tiny.build(*judged(clip))
    built.fit()
    callbacks = built.job.trainer.callbacks  # type: ignore[attr-defined]
    (preview,) = (callback for callback in callbacks if isinstance(callback, Preview))
    model = CLIPModel.from_pretrained(clip).eval()
    tokens = CLIPTokenizer.from_pretrained(clip)(list(PROMPTS), padding=True, return_tensors="pt")
    for pictures, suffix in ((preview.pictures, ""), (preview.base, "_base")):
        images = [
            Image.fromarray((p * 255).round().byte().permute(1, 2, 0).numpy()) for p in pictures
        ]
        pixels = CLIPImageProcessorPil.from_pretrained(clip)(images, return_tensors="pt")
        with torch.no_grad():
            output = model(**tokens, **pixels)
            cosines = output.logits_per_image.diagonal() / model.logit_scale.exp()
        found = built.job.figures[f"result/clip_prompt{suffix}"]
        assert found == pytest.approx(float(cosines.mean()), abs=2e-6)


@effect("result_metrics.clip_path")
def test_figures_are_logged_with_every_preview_and_told_at_the_end(tiny: Tiny, clip: Path) -> None:
    run = tiny.run(*judged(clip))
    for name in NAMES:
        steps = [int(row["step"]) for row in run.rows() if name in row]
        assert steps == [0, 2, 3]
        first, *_, last = run.column(name)
        base = run.column(f"{name}_base")
        assert len(set(base)) == 1
        assert first == base[0], "an untrained adapter draws what the base draws"
        assert run.metrics[name] == pytest.approx(last, abs=1e-6)
        assert run.metrics[f"{name}_base"] == pytest.approx(base[0], abs=1e-6)
    assert -1 <= run.metrics["result/clip_image"] <= run.metrics["result/clip_image_max"] <= 1
    assert "CLIP, pictures follow their prompts: " in run.stdout
    assert "2 prompts, 12 training images" in unfolded(run.stdout)
    plain = tiny.run(*PREVIEW, "logger=csv")
    assert not any(name.startswith("result/") for name in plain.metrics)


@effect("result_metrics.clip_path")
def test_the_weights_and_the_optimizer_know_nothing_of_it(tiny: Tiny, clip: Path) -> None:
    options = ("adapter.dropout=0.3",)  # drawn from the global generator
    watched = tiny.run(*judged(clip, *options)).checkpoint(3)
    plain = tiny.run(*PREVIEW, "logger=csv", *options).checkpoint(3)
    assert changed(plain["state_dict"], watched["state_dict"]) == []
    states = [c["optimizer_states"][0]["state"] for c in (plain, watched)]
    for number, state in states[0].items():
        assert changed(state, states[1][number]) == []


@effect("result_metrics.clip_path")
def test_a_resumed_run_goes_on_with_the_same_figures(tiny: Tiny, clip: Path) -> None:
    every = ("callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep_last=9")
    options = judged(clip, *every, "adapter.dropout=0.3")
    whole = tiny.run_anew(*options)
    again = tiny.run_anew(*options, f"run_id={_copied(whole.folder)}", "resume=auto")
    assert again.folder != whole.folder
    assert changed(whole.checkpoint(3)["state_dict"], again.checkpoint(3)["state_dict"]) == []
    assert {n: v for n, v in again.metrics.items() if n.startswith("result/")} == {
        n: v for n, v in whole.metrics.items() if n.startswith("result/")
    }


def unfolded(text: str) -> str:
    """Return what a table says as one line."""
    return " ".join(text.replace("│", " ").split())


def _copied(folder: Path) -> str:
    """Copy a run as a kill after its first step would have left it."""
    copy = folder.with_name(f"{folder.name}-killed")
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "adapters")
    for path in (copy / "checkpoints").glob("step-*.ckpt"):
        if path.name != "step-000001.ckpt":
            path.unlink()
    state = (copy / "run.json").read_text().replace('"finished"', '"running"')
    (copy / "run.json").write_text(state)
    return copy.name


@effect("result_metrics.compare_with")
def test_pictures_are_compared_with_the_images_that_were_named(tiny: Tiny, clip: Path) -> None:
    options = judged(clip, "validation.fraction=0.3")
    training = tiny.run(*options)
    held_out = tiny.run(*options, "result_metrics.compare_with=held_out")
    assert training.metrics["result/clip_image"] != held_out.metrics["result/clip_image"]
    assert training.metrics["result/clip_prompt"] == held_out.metrics["result/clip_prompt"]


@effect("result_metrics.num_images")
def test_no_more_images_than_asked_for_are_compared(tiny: Tiny, clip: Path) -> None:
    one = tiny.run(*judged(clip, "result_metrics.num_images=1"))
    assert "2 prompts, 1 training images" in unfolded(one.stdout)
    # Of a single image, mean and nearest are the same.
    assert one.metrics["result/clip_image"] == one.metrics["result/clip_image_max"]
    many = tiny.run(*judged(clip))
    assert many.metrics["result/clip_image"] < many.metrics["result/clip_image_max"]


@effect("optimized_metric")
def test_sweeps_get_what_is_better_when_higher_with_a_minus(tiny: Tiny, clip: Path) -> None:
    run = tiny.run(*judged(clip, "optimized_metric=result/clip_prompt"))
    assert run.value == -run.metrics["result/clip_prompt"]


@effect("preview.every_n_steps")
def test_a_run_that_stops_at_a_preview_still_leaves_its_sheet(tiny: Tiny, clip: Path) -> None:
    """Early stopping ends the run in the very step whose preview has been drawn."""
    early = ("validation.fraction=0.3", "validation.every_n_steps=2", "validation.patience=1",
             "validation.min_improvement=1000")  # fmt: skip
    run = tiny.run(*judged(clip, "trainer.max_steps=8", *early))
    assert run.state["steps"] < 8
    assert (run.folder / "preview.png").is_file()


@effect("result_metrics.clip_path", "result_metrics.compare_with", "result_metrics.num_images")
@pytest.mark.parametrize(
    ("overrides", "key", "remedy"),
    [
        (("preview.prompts=[]",), "preview.prompts", "set result_metrics.clip_path=null"),
        (
            ("result_metrics.compare_with=held_out",),
            "result_metrics.compare_with",
            "result_metrics.compare_with=training",
        ),
        (("result_metrics.num_images=0",), "result_metrics.num_images", "at least 1"),
        (("preview.every_n_steps=0",), "preview.every_n_steps", "at least 1"),
        (
            ("result_metrics.clip_path=null", "optimized_metric=result/clip_image"),
            "optimized_metric",
            "optimized_metric=val/loss",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused(
    tiny: Tiny, clip: Path, overrides: tuple[str, ...], key: str, remedy: str
) -> None:
    names = {override.partition("=")[0] for override in overrides}
    kept = [line for line in judged(clip) if line.partition("=")[0] not in names]
    with pytest.raises(ConfigError) as refusal:
        tiny.config(*kept, *overrides)
    assert [problem.key for problem in refusal.value.problems] == [key]
    assert str(refusal.value).startswith(f"{key} is")
    assert remedy in str(refusal.value)


@effect("result_metrics.clip_path")
def test_a_missing_model_is_told_with_all_other_problems_and_leaves_nothing(tiny: Tiny) -> None:
    with pytest.raises(ConfigError) as refusal:
        tiny.survey(*PREVIEW, "result_metrics.clip_path=models/none", "trainer.devices=99")
    assert {problem.key for problem in refusal.value.problems} == {
        "result_metrics.clip_path", "trainer.devices",
    }  # fmt: skip

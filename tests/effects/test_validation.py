"""Which images are held out, and when and how they are measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from loralab.app.preflight import Survey
from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import NUM_IMAGES, NUM_STEPS, Tiny, changed
from tests.tiny import make_images

HELD_OUT = ("validation.fraction=0.3", "logger=csv")


def digests(survey: Survey) -> tuple[set[str], set[str]]:
    """Return the contents that are trained on and those held out."""
    groups = (survey.items, survey.validation_items)
    training, held_out = ({item.record.digest for item in items} for items in groups)
    return training, held_out


@effect("validation.fraction")
def test_a_share_of_the_images_is_held_out_and_measured(tiny: Tiny) -> None:
    training, held_out = digests(tiny.survey("validation.fraction=0.3"))
    assert len(training) + len(held_out) == NUM_IMAGES
    assert not training & held_out
    assert 1 <= len(held_out) <= NUM_IMAGES / 2
    _, more = digests(tiny.survey("validation.fraction=0.6"))
    assert held_out < more, "a larger share holds out the same images and others"
    assert tiny.run(*HELD_OUT).metrics["val/loss"] > 0
    assert "val/loss" not in tiny.run().metrics


@effect("validation.folder")
def test_a_folder_is_held_out_in_place_of_a_share(tiny: Tiny, tmp_path: Path) -> None:
    make_images(tmp_path, count=2, seed=5)
    survey = tiny.survey(f"validation.folder={tmp_path}")
    assert len(survey.items) == NUM_IMAGES
    assert {item.record.path.parent for item in survey.validation_items} == {tmp_path}
    assert len(survey.validation_items) == 2


@effect("validation.seed")
def test_another_validation_seed_measures_otherwise_and_trains_the_same(tiny: Tiny) -> None:
    one, other = tiny.run(*HELD_OUT), tiny.run(*HELD_OUT, "validation.seed=1")
    assert one.metrics["val/loss_base"] != other.metrics["val/loss_base"]
    assert changed(one.adapter, other.adapter) == []


@effect("validation.strata")
@pytest.mark.parametrize(("strata", "middles"), [(4, [125, 375, 625, 875]), (2, [250, 750])])
def test_each_image_is_measured_in_the_middle_of_every_stratum(
    tiny: Tiny, strata: int, middles: list[int]
) -> None:
    metrics = tiny.run(*HELD_OUT, f"validation.strata={strata}").metrics
    prefix = "val/loss_at_timestep/"
    found = {int(key.removeprefix(prefix)): value
             for key, value in metrics.items() if key.startswith(prefix)}  # fmt: skip
    assert sorted(found) == middles
    assert metrics["val/loss"] == pytest.approx(sum(found.values()) / strata, rel=1e-5)


@effect("validation.every_n_steps")
@pytest.mark.parametrize(("every", "times"), [("null", 1), ("1", NUM_STEPS), ("2", 2)])
def test_validation_keeps_its_cadence_and_never_misses_the_end(
    tiny: Tiny, every: str, times: int
) -> None:
    run = tiny.run(*HELD_OUT, f"validation.every_n_steps={every}")
    assert len(run.column("val/loss")) == times
    assert run.column("val/loss")[-1] == pytest.approx(run.metrics["val/loss"])


@effect("validation.every_n_steps")
def test_validating_in_between_changes_no_bit_of_the_adapter(tiny: Tiny) -> None:
    rare, often = (tiny.run(*HELD_OUT, f"validation.every_n_steps={n}") for n in ("null", "1"))
    assert changed(rare.adapter, often.adapter) == []


WATCHED = (*HELD_OUT, "validation.every_n_steps=1", "trainer.max_steps=6", "optimizer.lr=0.1")


@effect("validation.train_probe")
def test_probe_measures_as_many_trained_images_and_the_gap(tiny: Tiny) -> None:
    with_probe, without = tiny.run(*WATCHED, "validation.train_probe=true"), tiny.run(*WATCHED)
    assert with_probe.metrics.keys() - without.metrics.keys() == {
        "val/loss_train_probe", "val/gap", "val/gap_stderr", "val/overfits",
    }  # fmt: skip
    assert changed(with_probe.adapter, without.adapter) == []
    survey = tiny.survey(*WATCHED, "validation.train_probe=true")
    training, held_out = digests(survey)
    probe = {item.record.digest for item in survey.probe_items}
    assert len(probe) == len(held_out) == len(survey.probe_items)
    assert probe < training
    assert tiny.survey(*WATCHED).probe_items == ()


@effect("validation.patience")
def test_patience_ends_a_run_that_gains_nothing(tiny: Tiny) -> None:
    idle = (*HELD_OUT, "validation.every_n_steps=1", "trainer.max_steps=6", "optimizer.lr=0")
    for patience in (2, 3):
        run = tiny.run(*idle, f"validation.patience={patience}")
        assert len(run.column("val/loss")) == run.state["steps"] == patience
        assert run.state["state"] == "finished"
        assert f"step {patience}: stopping early" in run.stdout
    assert tiny.run(*idle).state["steps"] == 6


@effect("validation.min_improvement")
def test_gain_below_the_least_one_does_not_count(tiny: Tiny) -> None:
    gaining = (*HELD_OUT, "validation.every_n_steps=1", "trainer.max_steps=6", "optimizer.lr=1e-3",
               "validation.patience=2")  # fmt: skip
    assert tiny.run(*gaining).state["steps"] == 6
    assert tiny.run(*gaining, "validation.min_improvement=1000").state["steps"] == 2


@effect("validation.keep_best")
def test_best_checkpoint_is_kept_and_exported_beside_the_last(tiny: Tiny) -> None:
    run = tiny.run(*WATCHED, "validation.keep_best=true")
    losses = run.column("val/loss")
    step = losses.index(min(losses)) + 1
    assert run.checkpoints == [f"best-{step:06d}.ckpt", "step-000006.ckpt"]
    assert run.metrics["val/best_step"] == step < 6
    assert run.metrics["val/best_loss"] == pytest.approx(min(losses))
    assert {"tiny.safetensors", "tiny-best.safetensors"} <= set(run.files)
    assert f"Best: {min(losses):.4f} at step {step}" in run.stdout
    assert changed(run.adapter, tiny.run(*WATCHED).adapter) == []
    best = load_file(run.folder / "adapters" / "tiny-best.safetensors")
    stopped = tiny.run(*HELD_OUT, "optimizer.lr=0.1", f"trainer.max_steps={step}")
    assert changed(best, stopped.adapter) == []
    assert "tiny-best.safetensors" not in tiny.run(*WATCHED).files


def test_single_held_out_image_cannot_stop_a_run(tiny: Tiny, tmp_path: Path) -> None:
    make_images(tmp_path, count=1, seed=5)
    with pytest.raises(ConfigError, match=r"validation\.patience is 3, but a single image"):
        tiny.survey(f"validation.folder={tmp_path}", "validation.patience=3",
                    "validation.every_n_steps=1")  # fmt: skip


def test_sweeps_may_minimise_the_best_loss(tiny: Tiny) -> None:
    run = tiny.run(*WATCHED, "optimized_metric=val/best_loss")
    assert run.value == run.metrics["val/best_loss"] < run.metrics["val/loss"]


def test_comparison_of_runs_shows_loss_error_and_best(tiny: Tiny) -> None:
    run = tiny.run(*HELD_OUT[:1], "logger=tensorboard")
    events = EventAccumulator(str(run.folder)).Reload()
    content = events.PluginTagToContent("hparams")["_hparams_/experiment"]
    data = plugin_data_pb2.HParamsPluginData.FromString(content)
    shown = {info.name.tag for info in data.experiment.metric_infos}
    assert {"val/loss", "val/loss_stderr", "val/best_loss", "val/best_step"} <= shown
    assert {"val/loss", "val/loss_stderr", "val/best_step"} <= set(events.Tags()["scalars"])


@effect("data.masks")
def test_held_out_images_are_measured_where_their_masks_are(tiny: Tiny, tmp_path: Path) -> None:
    """The left half and the right half of an image together are the whole of it."""
    folder, held_out = tmp_path / "images", tmp_path / "held_out"
    make_images(folder, count=1)
    make_images(held_out, count=1, seed=5)
    white = Image.new("L", (64, 64), 255)
    left, right = white.copy(), white.copy()
    left.paste(0, (32, 0, 64, 64))
    right.paste(0, (0, 0, 32, 64))

    def loss(mask: Image.Image) -> float:
        for place in (folder, held_out):
            mask.save(place / "image_000.mask.png")
        run = tiny.run_anew(
            f"data.image_dir={folder}", f"validation.folder={held_out}", "data.masks=file",
            "trainer.max_steps=1",
        )  # fmt: skip
        return run.metrics["val/loss_base"]

    halves = [loss(left), loss(right)]
    assert sum(halves) / 2 == pytest.approx(loss(white), rel=1e-5)
    assert halves[0] != pytest.approx(halves[1], rel=1e-3)


@effect("data.masks")
def test_a_held_out_image_without_its_mask_is_named(tiny: Tiny, tmp_path: Path) -> None:
    folder, held_out = tmp_path / "images", tmp_path / "held_out"
    make_images(folder, count=1)
    make_images(held_out, count=1, seed=5)
    Image.new("L", (64, 64), 255).save(folder / "image_000.mask.png")
    with pytest.raises(ConfigError, match=r"held_out/image_000\.png has no mask"):
        tiny.survey(f"data.image_dir={folder}", f"validation.folder={held_out}", "data.masks=file")

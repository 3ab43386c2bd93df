"""The moving average of the weights: what takes it, and what it is made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import Tiny, TinyRun, changed

EMA = ("ema=default", "ema.warmup=false", "ema.decay=0.5")
EVERY = ("callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep_last=9")
HELD_OUT = ("validation.fraction=0.25",)


def average(run: TinyRun, step: int) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = run.checkpoint(step)["callbacks"]["MovingAverage"]["weights"]
    return weights


def live(run: TinyRun, step: int) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = run.checkpoint(step)["state_dict"]
    return weights


@effect("ema.enabled")
def test_the_average_is_exported_and_training_does_not_know_of_it(tiny: Tiny) -> None:
    plain, averaged = tiny.run("ema=off"), tiny.run(*EMA)
    assert changed(live(plain, 3), live(averaged, 3)) == []
    assert changed(plain.adapter, averaged.adapter) != []
    assert changed(average(averaged, 3), averaged.checkpoint(3)["export_weights"]) == []
    assert "MovingAverage" not in plain.checkpoint(3)["callbacks"]


@effect("ema.decay")
def test_the_decay_is_the_share_of_the_old_average(tiny: Tiny) -> None:
    run = tiny.run(*EMA, *EVERY)
    one, two, averaged = live(run, 1), live(run, 2), average(run, 2)
    ups = [name for name in one if "lora_B" in name]  # they start at zero
    assert ups
    for name in ups:
        torch.testing.assert_close(averaged[name], 0.25 * one[name] + 0.5 * two[name])
    followed = tiny.run("ema=default", "ema.decay=0")
    assert changed(average(followed, 3), live(followed, 3)) == []


@effect("ema.warmup")
def test_the_first_update_of_a_warm_up_copies_the_weights(tiny: Tiny) -> None:
    run = tiny.run("ema=default", "ema.decay=0.999", "ema.warmup=true", *EVERY)
    assert changed(average(run, 1), live(run, 1)) == []
    ups = [name for name in live(run, 1) if "lora_B" in name]
    for name in ups:  # then 2/11 of the old one
        expected = (2 * live(run, 1)[name] + 9 * live(run, 2)[name]) / 11
        torch.testing.assert_close(average(run, 2)[name], expected, rtol=1e-4, atol=1e-7)


@effect("ema.start_step")
def test_until_its_first_step_the_average_is_the_live_weights(tiny: Tiny) -> None:
    run = tiny.run(*EMA, *EVERY, "ema.start_step=2")
    assert changed(average(run, 2), live(run, 2)) == []
    assert changed(average(run, 3), live(run, 3)) != []
    with pytest.raises(ConfigError, match=r"^ema\.start_step is 3; .*max_steps \(3\)"):
        tiny.config(*EMA, "ema.start_step=3")


@effect("ema.every_n_steps")
def test_between_updates_the_average_stays(tiny: Tiny) -> None:
    run = tiny.run(*EMA, *EVERY, "ema.every_n_steps=2")
    assert changed(average(run, 1), average(run, 2)) != []
    assert changed(average(run, 2), average(run, 3)) == []


@effect("ema.use_for")
def test_what_is_not_named_takes_the_live_weights(tiny: Tiny) -> None:
    plain = tiny.run(*HELD_OUT)
    exported = tiny.run(*HELD_OUT, *EMA, "ema.use_for=[export]")
    measured = tiny.run(*HELD_OUT, *EMA, "ema.use_for=[validation]")
    assert exported.metrics["val/loss"] == plain.metrics["val/loss"]
    assert measured.metrics["val/loss"] != plain.metrics["val/loss"]
    assert changed(exported.adapter, plain.adapter) != []
    assert changed(measured.adapter, plain.adapter) == []


@effect("ema.use_for")
def test_previews_take_the_average_when_they_are_named(tiny: Tiny) -> None:
    preview = ("preview.prompts=[red]", "preview.steps=1", "data.batch_size=4")
    pictures = {
        words: (tiny.run(*preview, *EMA, f"ema.use_for=[{words}]").folder / "preview.png")
        for words in ("preview", "export", "validation")
    }
    drawn = {words: path.read_bytes() for words, path in pictures.items()}
    assert drawn["export"] == drawn["validation"]
    assert drawn["preview"] != drawn["export"]


@effect("ema.use_for")
def test_an_average_for_nothing_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"^ema\.use_for is empty"):
        tiny.config("ema=default", "ema.use_for=[]")


@effect("ema.enabled")
def test_a_stopped_run_goes_on_with_its_average(tiny: Tiny) -> None:
    whole = tiny.run(*EMA, *EVERY, "trainer.max_steps=4")
    stopped = tiny.run_anew(*EMA, *EVERY, "trainer.max_steps=4", "name=stopped")
    for step in (3, 4):
        (stopped.folder / "checkpoints" / f"step-{step:06d}.ckpt").unlink()
    (stopped.folder / "run.json").unlink()
    resumed = tiny.run_anew(*EMA, *EVERY, "trainer.max_steps=4", "name=stopped", "resume=auto",
                            f"run_id={stopped.folder.name}")  # fmt: skip
    assert changed(average(whole, 4), average(resumed, 4)) == []
    assert changed(whole.adapter, resumed.adapter) == []


@effect("validation.keep_best")
def test_the_best_checkpoint_is_exported_with_its_own_average(tiny: Tiny) -> None:
    run = tiny.run(*HELD_OUT, *EMA, *EVERY, "validation.every_n_steps=1",
                   "validation.keep_best=true")  # fmt: skip
    (best,) = (run.folder / "checkpoints").glob("best-*.ckpt")
    content = torch.load(best, weights_only=True)
    (file,) = (run.folder / "adapters").glob("tiny-best.safetensors")
    from safetensors.torch import load_file

    exported = load_file(file)
    names = [name for name in exported if not name.endswith("alpha")]
    averaged = list(content["export_weights"].values())
    assert all(any(torch.equal(exported[name], t) for t in averaged if t.shape ==
                   exported[name].shape) for name in names)  # fmt: skip

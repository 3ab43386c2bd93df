"""Lightning's Trainer: how long, on what, how exactly."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy

from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import NUM_IMAGES, NUM_STEPS, Tiny

ONE_WINDOW = ("data.buckets.enabled=false",)


@effect("trainer.max_steps")
@pytest.mark.parametrize("steps", [1, 4])
def test_the_run_ends_after_max_steps(tiny: Tiny, steps: int) -> None:
    run = tiny.run(f"trainer.max_steps={steps}")
    assert run.state["steps"] == steps
    assert run.checkpoints == [f"step-{steps:06d}.ckpt"]


@effect("trainer.max_epochs")
def test_max_epochs_counts_passes_over_the_images(tiny: Tiny) -> None:
    # Batches of 5 cut the buckets of 5, 3 and 4 images into one each.
    run = tiny.run("trainer.max_epochs=2", "trainer.max_steps=-1", "data.batch_size=5")
    assert run.state["steps"] == 2 * 3


@effect("trainer.accumulate_grad_batches")
def test_the_same_window_in_one_piece_or_in_three_trains_the_same_adapter(tiny: Tiny) -> None:
    whole = tiny.run(*ONE_WINDOW, f"data.batch_size={NUM_IMAGES}")
    parts = tiny.run(
        *ONE_WINDOW, f"data.batch_size={NUM_IMAGES // 3}", "trainer.accumulate_grad_batches=3"
    )
    assert whole.state["steps"] == parts.state["steps"] == NUM_STEPS
    torch.testing.assert_close(whole.adapter, parts.adapter, rtol=1e-3, atol=2e-4)


@effect("trainer.accumulate_grad_batches")
def test_accumulation_divides_the_steps_of_an_epoch(tiny: Tiny) -> None:
    # 7 micro-batches an epoch; the last window of 3 is filled up.
    assert tiny.survey().steps_per_epoch == 7
    assert tiny.survey("trainer.accumulate_grad_batches=3").steps_per_epoch == 3


def gradient_norm(tiny: Tiny, *overrides: str) -> float:
    built = tiny.build("trainer.max_steps=1", *overrides)
    built.fit()
    gradients = [p.grad for p in built.job.module.parameters() if p.grad is not None]
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm())


@effect("trainer.gradient_clip_val")
def test_gradients_longer_than_the_clip_are_cut_to_it(tiny: Tiny) -> None:
    free = gradient_norm(tiny, "trainer.gradient_clip_val=null")
    assert free > 0.02
    assert gradient_norm(tiny, "trainer.gradient_clip_val=0.01") == pytest.approx(0.01, rel=1e-3)
    assert gradient_norm(tiny, f"trainer.gradient_clip_val={2 * free}") == pytest.approx(free)


@effect("trainer.log_every_n_steps")
@pytest.mark.parametrize(("every", "logged"), [(1, [1, 2, 3, 4]), (2, [2, 4])])
def test_numbers_are_logged_at_the_cadence(tiny: Tiny, every: int, logged: list[int]) -> None:
    run = tiny.run("logger=csv", "trainer.max_steps=4", f"trainer.log_every_n_steps={every}")
    assert [int(row["step"]) for row in run.rows() if "train/loss" in row] == logged


@effect("trainer.precision")
def test_mixed_precision_gives_another_loss_close_by(tiny: Tiny) -> None:
    exact = tiny.run("logger=csv").column("train/loss")
    mixed = tiny.run("logger=csv", "trainer.precision=bf16-mixed").column("train/loss")
    assert mixed != exact
    assert mixed == pytest.approx(exact, rel=0.05)


@effect("trainer.precision")
def test_an_unknown_precision_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"^trainer\.precision is bf16-mixde; .*bf16-mixed"):
        tiny.survey("trainer.precision=bf16-mixde")


@effect("trainer.precision")
@pytest.mark.parametrize(
    ("word", "precision"),
    [("true", "bf16-mixed"), ("bf16", "bf16-mixed"), ("false", "32-true"), ("no", "32-true"),
     ("fp16", "16-mixed")],
)  # fmt: skip
def test_other_words_for_a_precision_are_understood(tiny: Tiny, word: str, precision: str) -> None:
    assert tiny.config(f"trainer.precision={word}").trainer["precision"] == precision


@effect("trainer.accelerator")
def test_the_accelerator_is_the_one_that_is_named(tiny: Tiny) -> None:
    assert isinstance(tiny.build("trainer.accelerator=cpu").job.trainer.accelerator, CPUAccelerator)
    with pytest.raises(ConfigError, match=r"^trainer\.accelerator.*abacus"):
        tiny.survey("trainer.accelerator=abacus")


@effect("trainer.accelerator")
def test_a_gpu_is_taken_where_there_is_one_and_refused_where_not(tiny: Tiny) -> None:
    if torch.cuda.is_available():
        assert tiny.survey("trainer=gpu").total_steps > 0
        return
    with pytest.raises(ConfigError, match=r"^trainer\.accelerator is gpu, but .* no GPU"):
        tiny.survey("trainer=gpu")


@effect("trainer.devices")
def test_two_devices_share_the_steps_of_an_epoch(tiny: Tiny) -> None:
    built = tiny.build("trainer.devices=2")
    assert built.job.trainer.num_devices == built.job.trainer.world_size == 2
    assert built.survey.steps_per_epoch == 4, "7 micro-batches in windows of 2"


@effect("trainer.strategy")
def test_the_strategy_says_how_devices_work_together(tiny: Tiny) -> None:
    several, one = tiny.build("trainer=ddp").job.trainer, tiny.build().job.trainer
    assert isinstance(several.strategy, DDPStrategy)
    assert several.world_size == 2
    assert not isinstance(one.strategy, DDPStrategy)
    with pytest.raises(ConfigError, match=r"^trainer\.strategy is 'ddq'"):
        tiny.survey("trainer=ddp", "trainer.strategy=ddq")


@effect("trainer.devices")
@pytest.mark.parametrize("value", ["[0,1]", "[0]", "auto", "'2'", "-1", "0", "null", "true", "1.5"])
def test_only_a_number_of_devices_is_taken(tiny: Tiny, value: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        tiny.survey(f"trainer.devices={value}")
    (problem,) = refusal.value.problems
    found = {"null": "None", "true": "True", "[0,1]": "[0, 1]", "auto": "'auto'"}.get(value, value)
    assert problem.key == "trainer.devices"
    assert problem.message.startswith(f"trainer.devices is {found}; ")
    assert "a whole number above 0" in problem.message
    assert "CUDA_VISIBLE_DEVICES says which" in problem.message


def test_more_machines_than_the_plan_counts_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"^trainer\.num_nodes is 2; .* set it to 1\.$"):
        tiny.survey("+trainer.num_nodes=2")


class AnomalyMode(L.Callback):
    """Notes whether torch looks for anomalies while training."""

    def __init__(self) -> None:
        self.seen: set[bool] = set()

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.seen.add(torch.is_anomaly_enabled())


@effect("trainer.detect_anomaly")
@pytest.mark.parametrize("word", ["true", "false"])
@pytest.mark.filterwarnings("ignore:.*[Aa]nomaly.*:UserWarning")
def test_anomaly_detection_is_on_while_training(tiny: Tiny, word: str) -> None:
    built, mode = (
        tiny.build("trainer.max_steps=1", f"+trainer.detect_anomaly={word}"),
        AnomalyMode(),
    )
    built.job.trainer.callbacks.append(mode)  # type: ignore[attr-defined]
    built.fit()
    assert mode.seen == {word == "true"}

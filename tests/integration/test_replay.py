"""Recordings of `train.py --record`, replayed by us and by a loop that knows nothing of us."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loralab.app.logs import quiet_libraries
from loralab.cli.replay import replay
from tests.independent_loop import Recipe, train
from tests.integration.cli import Cli
from tests.tiny import make_images, make_tiny_sd1

STEPS = 20
EPSILON = Recipe(rate=1e-3, num_steps=STEPS, clip_norm=0.05)
VELOCITY = Recipe(
    rate=1e-3,
    num_steps=STEPS,
    prediction_type="v_prediction",
    min_snr=5.0,
    accumulation=2,
    clip_skip=2,
    schedule="cosine_with_restarts",
    num_warmup=4,
    num_cycles=2,
)
SETTINGS = {
    "epsilon": (EPSILON, ["compat=sd_scripts", "trainer.gradient_clip_val=0.05"]),
    "velocity": (
        VELOCITY,
        [
            "compat=sd_scripts",
            "objective=min_snr",
            "objective.noise_offset=0.1",
            "trainer.accumulate_grad_batches=2",
            "model.clip_skip=2",
            "model.max_tokens=150",
            "scheduler=cosine_with_restarts",
            "scheduler.num_cycles=2",
            "scheduler.warmup_steps=4",
        ],
    ),
}


class Recorded:
    """A run by `python train.py --record`, and what a replay needs of it."""

    def __init__(self, cli: Cli, root: Path, kind: str) -> None:
        self.recipe, chosen = SETTINGS[kind]
        self.base = make_tiny_sd1(root / "base", prediction_type=self.recipe.prediction_type)
        make_images(root / "images", count=6)
        self.overrides = [
            "~experiment", "model=sd15", f"model.path={self.base}", "model.native_resolution=64",
            "trainer=cpu", "cpu_threads=1", "name=run", "run_id=it", f"output_dir={root}",
            "adapter.rank=4", "adapter.alpha=3", "adapter.unet.targets=[sd_scripts]",
            "adapter.text_encoder={targets: [sd_scripts], lr_scale: 1.0}", "optimizer.lr=1e-3",
            f"trainer.max_steps={STEPS}", "logger=none", "preview=none",
            "data.buckets={step: 16, min_side: 32, max_side: 128}", *chosen,
        ]  # fmt: skip
        done = cli(
            "--record", "export.precision=fp32", f"data.image_dir={root / 'images'}",
            "data.batch_size=2", "data.num_workers=0", *self.overrides,
        )  # fmt: skip
        assert done.code == 0, done.text
        folder = root / "run" / "it"
        self.batches = folder / "recording" / "batches.safetensors"
        self.start = folder / "recording" / "start.safetensors"
        self.adapter = load_file(folder / "adapters" / "run.safetensors")


@pytest.fixture(
    scope="module", params=["epsilon", pytest.param("velocity", marks=pytest.mark.slow)]
)
def run(
    request: pytest.FixtureRequest, cli: Cli, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    return Recorded(cli, tmp_path_factory.mktemp("recorded"), request.param)


def largest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest relative difference of a tensor, by norm."""
    return max(float((one[key] - other[key]).norm() / other[key].norm()) for key in other)


def lines(text: str) -> tuple[list[float], list[float], list[float]]:
    """Return losses, gradient norms and rates of a replay's output."""
    found = [json.loads(line) for line in text.splitlines()]
    steps = [line for line in found if "step" in line]
    rates = [set(line["learning_rates"].values()) for line in steps]
    assert all(len(rate) == 1 for rate in rates)
    return (
        [line["loss"] for line in found],
        [line["gradient_norm"] for line in steps],
        [rate.pop() for rate in rates],
    )


def test_a_replay_is_the_run_bit_for_bit(
    run: Recorded, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    quiet_libraries()  # as before every command
    replay(run.batches, out, [*run.overrides, f"adapter.init_from={run.start}"])
    said = capfd.readouterr()
    ours = load_file(out)
    assert ours.keys() == run.adapter.keys()
    assert [key for key in ours if not torch.equal(ours[key], run.adapter[key])] == []
    count = STEPS * run.recipe.accumulation + STEPS
    assert said.err == f"All {count} recorded losses and gradient norms came out bit for bit.\n"
    assert len(said.out.splitlines()) == STEPS * run.recipe.accumulation


def test_a_replay_comes_to_the_numbers_of_a_loop_that_is_not_ours(
    run: Recorded, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = load_file(run.batches)
    kept = {"latents", "noise", "timesteps", "input_ids", "loss_weight"}
    foreign = tmp_path / "foreign.safetensors"
    save_file({k: t for k, t in content.items() if k.partition(".")[2] in kept}, foreign)
    out = tmp_path / "out.safetensors"
    quiet_libraries()
    replay(foreign, out, [*run.overrides, f"adapter.init_from={run.start}"])
    losses, norms, rates = lines(capfd.readouterr().out)

    theirs = train(run.base, foreign, run.start, run.recipe)

    assert losses == pytest.approx(theirs.losses, rel=1e-6)
    assert norms == pytest.approx(theirs.norms, rel=1e-6)
    assert rates == pytest.approx(theirs.rates, rel=1e-12)
    assert largest(load_file(out), theirs.adapter) < 1e-6
    assert largest(load_file(run.start), theirs.adapter) > 1e-3

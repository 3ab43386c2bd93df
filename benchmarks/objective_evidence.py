"""Evidence about the objective, its windows and draws, replays, validation and early stopping."""

from __future__ import annotations

import csv
import json
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from runs import ROOT, only_run, train

sys.path.insert(0, str(ROOT))  # the loop that is not ours lies beside the tests

SEEDS = (0, 1, 2)
QUIET = ("demo_quality=0", "preview=none")
STEPS = 20
ADAPTER = ("adapter.rank=4", "adapter.alpha=3", "adapter.unet.targets=[sd_scripts]",
           "adapter.text_encoder={targets: [sd_scripts], lr_scale: 1.0}")  # fmt: skip
RECORDED = {
    "epsilon, clipped at 0.02": {
        "options": ("trainer.gradient_clip_val=0.02",),
        "recipe": {"clip_norm": 0.02},
    },
    "velocity, min-SNR 5, accumulation 2, clip skip 2, 150 tokens, restarts, offset noise": {
        "options": (
            "model.prediction_type=v_prediction", "objective=min_snr", "model.clip_skip=2",
            "objective.noise_offset=0.1", "trainer.accumulate_grad_batches=2",
            "model.max_tokens=150", "scheduler=cosine_with_restarts", "scheduler.num_cycles=2",
            "scheduler.warmup_steps=4",
        ),
        "recipe": {
            "prediction_type": "v_prediction", "min_snr": 5.0, "accumulation": 2, "clip_skip": 2,
            "schedule": "cosine_with_restarts", "num_warmup": 4, "num_cycles": 2,
        },
    },
}  # fmt: skip


def replay(output: Path) -> Iterator[str]:
    """Two recorded runs on the demo base, replayed by us and by a loop that is not ours."""
    from safetensors.torch import load_file

    from tests.independent_loop import Recipe
    from tests.independent_loop import train as train_by_hand

    torch.set_num_threads(1)
    yield f"`python train.py --record`, {STEPS} steps on the embedded base, `compat=sd_scripts`;"
    yield "then `loralab replay`, and the loop of `tests/independent_loop.py`: a stock diffusers"
    yield "UNet and DDPMScheduler, LoRA layers written by hand, `torch.optim.AdamW`. Differences"
    yield "between replay and loop are relative, the largest of all steps and tensors."
    yield "\n| run | replay | loss | gradient norm | weights |\n|---|---|---|---|---|"
    for name, setting in RECORDED.items():
        place = output / name.split(",")[0]
        options = ("data=demo", "data.batch_size=4", "model=demo", "trainer=cpu", "cpu_threads=1",
                   "optimizer.lr=1e-3", f"trainer.max_steps={STEPS}", *ADAPTER,
                   "compat=sd_scripts", "~experiment", *setting["options"])  # fmt: skip
        train(place, "--record", "name=demo", "preview=none", "export.precision=fp32", *options)
        folder = only_run(place)
        batches, start = (folder / "recording" / f"{x}.safetensors" for x in ("batches", "start"))
        out = place / "replayed.safetensors"
        command = [Path(sys.executable).parent / "loralab", "replay", "--batches", batches, "--out",
                   out, f"adapter.init_from={start}", "preview=none", *options]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        ours = [json.loads(line) for line in done.stdout.splitlines()]
        adapter, kept = load_file(out), load_file(folder / "adapters" / "demo.safetensors")
        equal = "bit for bit" in done.stderr and all(torch.equal(adapter[k], kept[k]) for k in kept)
        recipe = Recipe(rate=1e-3, num_steps=STEPS, **setting["recipe"])
        theirs = train_by_hand(ROOT / "src/loralab/demo/base", batches, start, recipe)
        norms = [line["gradient_norm"] for line in ours if "step" in line]
        weights = max(
            float((adapter[key] - own).norm() / own.norm()) for key, own in theirs.adapter.items()
        )
        losses = [line["loss"] for line in ours]
        yield (
            f"| {name} | {'bit for bit' if equal else 'DIFFERS'} "
            f"| {_largest(losses, theirs.losses):.1e} "
            f"| {_largest(norms, theirs.norms):.1e} | {weights:.1e} |"
        )


def windows(output: Path) -> Iterator[str]:
    """One step of seven images cut in every way, against one batch of seven."""
    from windows import CUTS, gradients

    found = gradients(output)
    yield "Seven images of the demo on the embedded base, adapters away from zero: the gradient"
    yield "of one step cut into micro-batches against that of one batch of seven, relative. The"
    yield "last row is the same batch of seven in other orders: what float32 itself is worth, but"
    yield "for the kernels, which round otherwise for another size of batch.\n"
    yield "| micro-batch | accumulation | float64 | float32 |\n|---|---|---|---|"
    for size, accumulation in CUTS:
        row = [found[dtype][size, accumulation] for dtype in ("float64", "float32")]
        yield f"| {size} | {accumulation} | {row[0]:.1e} | {row[1]:.1e} |"
    row = [found[dtype]["order"] for dtype in ("float64", "float32")]
    yield f"| 7, largest of five orders | 1 | {row[0]:.1e} | {row[1]:.1e} |"


def timesteps(output: Path) -> Iterator[str]:
    """Variance of a step's loss at fixed weights, and how often each timestep comes."""
    from timestep_variance import losses_by_spread, marginal

    num_windows = 400
    yield f"{num_windows} windows of eight images of the demo at fixed weights; the spread alone"
    yield "changes. Chi-square: the first image of 20,000 windows in 50 equal bins of timesteps;"
    yield "p is the chance of so uneven a count if all timesteps come equally often.\n"
    yield "| spread | mean loss | variance | ratio | chi-square (49) | p |"
    yield "|---|---|---|---|---|---|"
    losses = losses_by_spread(num_windows)
    plain = statistics.variance(losses["independent"])
    for spread, values in losses.items():
        variance = statistics.variance(values)
        chi_square, p = marginal(spread)
        yield (
            f"| {spread} | {statistics.mean(values):.4f} | {variance:.2e} "
            f"| {variance / plain:.2f} | {chi_square:.1f} | {p:.2f} |"
        )


def validation(output: Path) -> Iterator[str]:
    """The same weights measured in two processes; the error bar against three seeds."""
    figures = []
    for cadence in (5, 10):
        place = output / f"every-{cadence}"
        train(place, "experiment=smoke", f"validation.every_n_steps={cadence}")
        metrics = json.loads((only_run(place, "smoke") / "run.json").read_text())["metrics"]
        figures.append({k: v for k, v in metrics.items() if k.startswith("val/loss")})
    same = figures[0] == figures[1]
    yield "Step 10 of the same run in two processes, validated every 5 or every 10 steps:"
    yield f"{len(figures[0])} figures, {'all equal to the last bit' if same else 'DIFFERENT'}.\n"
    yield "| seed | val/loss | standard error | improvement | standard error |"
    yield "|---|---|---|---|---|"
    rows = []
    for seed in SEEDS:
        place = output / str(seed)
        train(place, f"seed={seed}", *QUIET)
        metrics = json.loads((only_run(place) / "run.json").read_text())["metrics"]
        names = ("val/loss", "val/loss_stderr", "val/improvement", "val/improvement_stderr")
        rows.append([metrics[name] for name in names])
        yield f"| {seed} | " + " | ".join(f"{value:.4f}" for value in rows[-1]) + " |"
    losses = [row[0] for row in rows]
    spread, bar = statistics.stdev(losses), statistics.mean(row[1] for row in rows)
    paired = statistics.mean(row[3] for row in rows)
    yield f"\nThe losses of the three seeds spread by {spread:.5f} (standard deviation), from"
    yield f"{min(losses):.4f} to {max(losses):.4f}. {_says('One error bar', bar, spread)}; the bar"
    yield f"of the improvement, image by image, {_says('', paired, spread)}."
    yield "The bars say how much a figure would change with other held-out images: all seeds share"
    yield "these, so they spread less."


def _says(what: str, bar: float, spread: float) -> str:
    word = "covers" if bar >= spread else "does NOT cover"
    return f"{what} is {bar:.4f} and {word} that ({bar / spread:.1f} times as much)".strip()


def overfitting(output: Path) -> Iterator[str]:
    """Eight images trained on for too long, with and without early stopping."""
    images = output / "eight"
    images.mkdir()
    for path in sorted((ROOT / "src/loralab/demo/images/train").glob("*.png"))[:8]:
        for file in (path, path.with_suffix(".txt")):
            shutil.copy(file, images)
    options = (f"data.image_dir={images}", "model.allow_demo=true", "logger=csv", *QUIET,
               "scheduler=constant", "scheduler.warmup_steps=0", "optimizer.lr=4e-3",
               "data.batch_size=4", "validation.strata=2", "validation.every_n_steps=10",
               "validation.train_probe=true", "validation.keep_best=true")  # fmt: skip
    train(output / "whole", *options, "trainer.max_steps=100")
    done, _ = train(output / "stopped", *options, "trainer.max_steps=100", "validation.patience=3")
    rows = {name: _rows(only_run(output / name)) for name in ("whole", "stopped")}
    last = max(rows["stopped"])
    lowest = min(rows["whole"], key=lambda step: rows["whole"][step]["val/loss"])
    yield "Eight images, constant rate 4e-3, validation every 10 steps; once for 100 steps, once"
    yield "with `validation.patience=3 validation.keep_best=true`.\n"
    yield "| step | val/loss | trained images | overfits | with early stopping |"
    yield "|---|---|---|---|---|"
    for step, row in sorted(rows["whole"].items()):
        twin = rows["stopped"].get(step)
        says = "" if twin is None else "same" if twin == row else "DIFFERENT"
        says += ", stopped" if step == last else ""
        ours, trained = row["val/loss"], row["val/loss_train_probe"]
        flag = "yes" if row["val/overfits"] else ""
        yield f"| {step} | {ours:.4f} | {trained:.4f} | {flag} | {says} |"
    folder = only_run(output / "stopped")
    kept = [path.name for path in (folder / "checkpoints").glob("*best*")]
    lines = [
        line for line in done.stdout.splitlines() if "stopping early" in line or "overfit" in line
    ]
    yield f"\nThe lowest loss of all 100 steps is at step {lowest}; the stopped run ended at {last}"
    yield f"and kept {', '.join(f'`{name}`' for name in kept)}. It said:\n"
    yield "```\n" + "\n".join(lines) + "\n```"


def _rows(folder: Path) -> dict[int, dict[str, float]]:
    """Return the validations of a run by step."""
    names = ("val/loss", "val/loss_train_probe", "val/overfits")
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/loss")]
    return {int(row["step"]): {name: float(row[name]) for name in names} for row in rows}


def _largest(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the largest relative difference of two traces."""
    assert len(ours) == len(theirs)
    return max(abs(a - b) / max(abs(b), math.ulp(1.0)) for a, b in zip(ours, theirs, strict=True))

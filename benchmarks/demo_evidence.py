"""Evidence about the embedded base and the two demo experiments."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from runs import ROOT, only_run, train

SEEDS = (0, 1, 2)
PACKAGES = "NODE_MODULES"  # names the npm packages of the demo's credits; see pretrain.py


def base(output: Path) -> Iterator[str]:
    """A hundred subjects by lot, one drawing each."""
    from drawings import base_words

    top1, top5 = base_words(ROOT / "docs" / "base.png")
    yield "A hundred of the base's subjects, chosen by `random.Random(0)`, one drawing each with"
    yield f"seed 0. Nearest real icon is the right one: **{top1:.0%}**; among the five nearest:"
    yield f"**{top5:.0%}**.\n\n![drawings of the base](base.png)\n"
    yield "| in the package | bytes |\n|---|---|"
    demo = ROOT / "src/loralab/demo"
    for name in ("base/unet", "base/vae", "base/text_encoder", "base/tokenizer", "base", "images",
                 "icons"):  # fmt: skip
        size = sum(path.stat().st_size for path in (demo / name).rglob("*") if path.is_file())
        yield f"| `{name}` | {size:,} |"


def style(output: Path) -> Iterator[str]:
    """The default experiment with three seeds, judged by `loralab evaluate-demo`."""
    yield "24 subjects that the LoRA never saw, 4 drawings each, judged by `loralab evaluate-demo`."
    yield "Style is the share of drawings in the new style.\n"
    yield (
        "| seed | train s | val/loss | base | change | top-1 base | top-1 LoRA | top-5 base | "
        "top-5 LoRA | style |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for seed in SEEDS:
        place = output / str(seed)
        _, seconds = train(place, f"seed={seed}")
        folder = only_run(place)
        command = [str(Path(sys.executable).parent / "loralab"), "evaluate-demo", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        metrics = json.loads((folder / "run.json").read_text())["metrics"]
        scores = json.loads((folder / "evaluation.json").read_text())["scores"]
        original, lora = scores["base"], scores["lora"]
        loss, untrained = metrics["val/loss"], metrics["val/loss_base"]
        yield (
            f"| {seed} | {seconds:.0f} "
            f"| {loss:.4f} | {untrained:.4f} | {loss / untrained - 1:+.0%} "
            f"| {original['content_top1']:.0%} | {lora['content_top1']:.0%} "
            f"| {original['content_top5']:.0%} | {lora['content_top5']:.0%} "
            f"| {lora['styles']['cyanotype']:.0%} |"
        )
        if seed == SEEDS[0]:
            shutil.copy(folder / "evaluation.png", ROOT / "docs" / "style.png")
    yield "\nSeed 0, the first drawing of each subject:\n\n![base and LoRA](style.png)"


def subject(output: Path) -> Iterator[str]:
    """The subject experiment with and without regularisation images."""
    from drawings import subject_figures

    runs = {"with prior": (), "without": ("data.prior.image_dir=null",)}
    adapters: dict[str, Path | None] = {"base": None}
    seconds = {}
    for name, overrides in runs.items():
        place = output / name.replace(" ", "-")
        _, seconds[name] = train(place, "experiment=demo_subject", *overrides)
        [adapters[name]] = only_run(place, "demo_subject").glob("adapters/*.diffusers.safetensors")
    rows = subject_figures(adapters, ROOT / "docs" / "subject.png")
    yield "The wall clock by its trigger word, 24 drawings; five other clocks by name, 8 each."
    yield f"Training took {seconds['with prior']:.0f} s with, {seconds['without']:.0f} s without.\n"
    yield (
        "| model | trigger draws the subject | other clocks right | other clocks became the "
        "subject | difference from the base's drawing |\n|---|---|---|---|---|"
    )
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield "\n![base, with prior loss, without](subject.png)"


def pretraining(output: Path) -> Iterator[str]:
    """The denoiser's pretraining killed with -9 and continued, against no interruption."""
    packages = os.environ.get(PACKAGES)
    if not packages:
        raise SystemExit(f"Set {PACKAGES} to a node_modules folder with the demo's npm packages.")
    steps, places = 150, (output / "whole", output / "killed")
    for place in places:
        for part in ("tokenizer", "vae"):
            shutil.copytree(ROOT / "src/loralab/demo/base" / part, place / part)
    command = [sys.executable, "-u", "-m", "loralab.demo.pretrain", "denoiser",
               "--packages", packages, "--steps", str(steps), "--work"]  # fmt: skip
    subprocess.run([*command, str(places[0])], cwd=ROOT, check=True, capture_output=True)
    with subprocess.Popen(
        [*command, str(places[1])], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        while not (places[1] / "denoiser.pt").is_file():
            time.sleep(0.2)
        time.sleep(5)
        process.send_signal(signal.SIGKILL)
    kept = torch.load(places[1] / "denoiser.pt", weights_only=True)["progress"]["step"]
    subprocess.run([*command, str(places[1])], cwd=ROOT, check=True, capture_output=True)
    states = [torch.load(place / "denoiser.pt", weights_only=True) for place in places]
    pairs = zip(_tensors(states[0]), _tensors(states[1]), strict=True)
    equal = all(torch.equal(one, other) for one, other in pairs)
    yield f"`pretrain denoiser --steps {steps}` killed some steps after its checkpoint of step "
    yield f"{kept}, then started again: weights, averages and optimizer state of the end are "
    yield f"{'equal bit for bit to' if equal else 'DIFFERENT from'} those of no interruption."


def _tensors(state: object) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for key, value in state.items():
            if key != "progress":  # the CPU time differs
                yield from _tensors(value)

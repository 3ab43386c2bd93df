"""Comparisons for the evidence: files against the live model, a resumed run against a whole one."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.utils import logging as transformers_logging

from loralab.adapters.state import load_adapter_state
from loralab.app.build import build_family
from loralab.app.folders import RunFolder
from loralab.app.preflight import preflight
from loralab.config.parse import parse_config

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()
logging.getLogger("tensorboard").setLevel(logging.ERROR)

PROMPT, STEPS, GUIDANCE = "cyanotype, cat, animal", 20, 4.0


def largest_pixel_difference(folder: Path) -> Iterator[tuple[str, float, float]]:
    """Yield (file, live against file, live against base) for every adapter file of a run."""
    config = parse_config(OmegaConf.load(folder / "config.yaml"))
    survey = preflight(config, RunFolder(folder.parent / "none"))
    family = build_family(config, survey)
    (checkpoint,) = sorted((folder / "checkpoints").glob("*.ckpt"))[-1:]
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name in survey.parts:
        prefix = f"{name}."
        own = {key[len(prefix) :]: v for key, v in state.items() if key.startswith(prefix)}
        load_adapter_state(family.parts[name], own)
    live_pipeline = _pipeline(config.model.path)
    live_pipeline.unet = family.parts["unet"].eval()
    live_pipeline.text_encoder = family.parts["text_encoder"].eval()
    live, base = _draw(live_pipeline), _draw(_pipeline(config.model.path))
    for file in sorted((folder / "adapters").glob("*.safetensors")):
        pipeline = _pipeline(config.model.path)
        pipeline.load_lora_weights(str(file))
        difference = (_draw(pipeline) - live).abs().max()
        yield file.name, float(difference), float((base - live).abs().max())


def compare_runs(whole: Path, resumed: Path) -> Iterator[tuple[str, bool]]:
    """Yield what was compared and whether it is equal bit for bit."""
    for file in sorted((whole / "adapters").glob("*.safetensors")):
        ours, theirs = load_file(file), load_file(resumed / "adapters" / file.name)
        equal = ours.keys() == theirs.keys() and all(
            torch.equal(ours[key], theirs[key]) for key in ours
        )
        yield f"`{file.name}`, {len(ours)} tensors", equal
    last = sorted((whole / "checkpoints").glob("*.ckpt"))[-1].name
    pair = [torch.load(run / "checkpoints" / last, weights_only=True) for run in (whole, resumed)]
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in pair]
    same = states[0].keys() == states[1].keys() and all(
        torch.equal(torch.as_tensor(states[0][n][k]), torch.as_tensor(states[1][n][k]))
        for n in states[0]
        for k in states[0][n]
    )
    yield f"optimizer state, {len(states[0])} parameters", same
    for tag in ("train/loss", "train/gradient_norm", "val/loss"):
        curves = [_curve(run, tag) for run in (whole, resumed)]
        yield f"`{tag}`, {len(curves[0])} points", curves[0] == curves[1]


def hparams_rows(output: Path) -> Iterator[tuple[str, float, float]]:
    """Yield (run, val/loss, val/loss_base) of every run TensorBoard lists with settings."""
    for run in sorted({path.parent for path in output.rglob("events.out.tfevents.*")}):
        accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
        assert "_hparams_/session_start_info" in accumulator.summary_metadata
        figures = [accumulator.Scalars(tag)[-1].value for tag in ("val/loss", "val/loss_base")]
        yield run.name, figures[0], figures[1]


def screenshot(output: Path, target: Path) -> bool:
    """Save a picture of TensorBoard's HPARAMS tab; False when there is no Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return False
    port = "6917"
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", str(output), "--port", port],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(15)
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
             "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", f"--user-data-dir={output / 'browser'}", "--window-size=1700,900",
             "--virtual-time-budget=30000", f"--screenshot={target}",
             f"http://localhost:{port}/#hparams"],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
    finally:
        server.terminate()
        server.wait()
    return True


def _pipeline(path: str) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(
        path, safety_checker=None, dtype=torch.float32, local_files_only=True
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _draw(pipeline: StableDiffusionPipeline) -> torch.Tensor:
    return pipeline(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images


def _curve(run: Path, tag: str) -> dict[int, float]:
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {event.step: event.value for event in accumulator.Scalars(tag)}

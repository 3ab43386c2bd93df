"""Evidence about the model families: against diffusers, at full size, and from broken files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from runs import ROOT, train

sys.path.insert(0, str(ROOT))  # the tiny models and the reference names are those of the tests
FIGURES = {
    "prediction": "prediction against the pipeline's UNet call",
    "kohya": "picture by the kohya file",
    "diffusers": "picture by the diffusers file",
    "epsilon": "new process, preview against diffusers (of 255)",
    "zero_terminal_snr": "the same, velocity and zero terminal SNR (of 255)",
}
TINY = ("experiment=sd15_style", "model.native_resolution=64", "trainer=cpu", "preview=none",
        "data.buckets={enabled: true, step: 16, min_side: 32, max_side: 128}",
        "validation=none")  # fmt: skip


def families(output: Path) -> Iterator[str]:
    """The conformance suite of every family, with the largest differences it found."""
    report = output / "report.xml"
    subprocess.run(
        [sys.executable, "-m", "pytest", "tests/models/conformance", "-m", "slow or not slow",
         "-o", "junit_family=xunit1", f"--junitxml={report}"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    passed: dict[str, int] = defaultdict(int)
    largest: dict[str, dict[str, float]] = defaultdict(dict)
    for test in ElementTree.parse(report).iter("testcase"):
        words = test.attrib["name"].replace("[", "-").replace("]", "-").split("-")
        family = next((word for word in words if word in ("sd1", "sd2", "sdxl")), None)
        if family is None:
            continue
        passed[family] += test.find("skipped") is None
        for item in test.iter("property"):
            name, value = item.attrib["name"], float(item.attrib["value"])
            largest[family][name] = max(largest[family].get(name, 0.0), value)
    yield "`pytest tests/models/conformance`; tiny models, largest absolute differences.\n"
    yield f"| | {' | '.join(passed)} |\n|---|{'---|' * len(passed)}"
    yield f"| results passed | {' | '.join(str(count) for count in passed.values())} |"
    for name, title in FIGURES.items():
        cells = (f"{largest[family][name]:.2g}" for family in passed)
        yield f"| {title} | {' | '.join(cells)} |"
    yield "\nFolder, `.safetensors`, `.ckpt` and old `.ckpt` agree to the bit in every family.\n"
    yield from _modules()


def _modules() -> Iterator[str]:
    from loralab.models.specs import SPECS
    from tests.models.test_shipped import hits, network

    yield "| full size, without memory | UNet `sd_scripts` | UNet `full` | text encoders |"
    yield "|---|---|---|---|"
    for name, spec in SPECS.items():
        unet = network(name, "unet")
        counts = [hits(unet, spec.targets["unet"][preset]) for preset in ("sd_scripts", "full")]
        texts = [
            hits(network(name, part), spec.targets[part]["sd_scripts"]) for part in spec.text_parts
        ]
        cells = " | ".join(str(count) for count in counts)
        yield f"| {spec.title} | {cells} | {' + '.join(str(count) for count in texts)} |"


def full_size(output: Path) -> Iterator[str]:
    """A Stable Diffusion 1.5 of random weights trained for five steps on the CPU."""
    from tests.tiny import make_images

    folder = output / "sd15"
    weights = _write_sd15(folder)
    make_images(output / "images", count=12)
    command = [sys.executable, "train.py", "experiment=sd15_style", "trainer=cpu",
               f"model.path={folder}", f"data.image_dir={output / 'images'}",
               "data.resolution=256", "data.batch_size=1", "trainer.max_steps=5",
               "scheduler.warmup_steps=0", "preview=none", "model.weight_dtype=fp32",
               "validation.fraction=0.25",
               f"output_dir={output / 'runs'}"]  # fmt: skip
    started = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        peak: list[int] = [0]
        watch = threading.Thread(target=_watch, args=(process, peak))
        watch.start()
        text = process.communicate()[0]
        watch.join()
    if process.returncode != 0:
        raise SystemExit(text)
    seconds = time.perf_counter() - started
    losses = [line for line in text.splitlines() if line.startswith("Loss on held-out")]
    yield "`python train.py experiment=sd15_style trainer=cpu data.resolution=256`"
    yield "`trainer.max_steps=5 data.batch_size=1`: random weights in the shapes of Stable"
    yield f"Diffusion 1.5, {weights / 2**30:.2f} GiB in float32. {seconds:.0f} s in all; peak of"
    yield f"the process's own memory {peak[0] / 2**20:.2f} GiB (RssAnon: the frozen weights are"
    yield f"mapped from the file).\n\n```\n{losses[-1]}\n```"


def _write_sd15(folder: Path) -> int:
    """Write the folder; return the bytes of the weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from loralab.models.checkpoint import SHIPPED
    from loralab.models.vocabulary import clip_tokenizer

    shipped = SHIPPED / "sd1"
    for part, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        cls.from_config(cls.load_config(shipped / part)).save_pretrained(folder / part)
    config = json.loads((shipped / "text_encoder/config.json").read_text())
    CLIPTextModel(CLIPTextConfig(**config)).save_pretrained(folder / "text_encoder")
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    shutil.copytree(shipped / "scheduler", folder / "scheduler")
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    """Keep the largest RssAnon of a process (KiB, /proc/PID/status), read ten times a second."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                peak[0] = max(peak[0], int(line.split()[1]))
        time.sleep(0.1)


def checkpoints(output: Path) -> Iterator[str]:
    """Broken, foreign and planted model files, and the sentence each gets."""
    import torch
    from safetensors.torch import save_file

    from tests.models.conformance.ldm import single_file
    from tests.tiny import make_images, make_tiny_sd1, make_tiny_sdxl

    make_images(output / "images", count=4)
    folder = make_tiny_sd1(output / "tiny")
    tensors = single_file(folder, "sd1")
    planted = output / "ran"
    save_file(tensors, output / "whole.safetensors")
    whole = (output / "whole.safetensors").read_bytes()
    (output / "truncated.safetensors").write_bytes(whole[:-100])
    (output / "page.safetensors").write_bytes(b"<html>404: not found</html>")
    save_file(single_file(make_tiny_sdxl(output / "xl"), "sdxl"), output / "xl.safetensors")
    gone = "model.diffusion_model.time_embed.0.weight"
    some = {name: tensor for name, tensor in tensors.items() if name != gone}
    save_file(some, output / "incomplete.safetensors")
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, output / "adapter.safetensors")
    torch.save({"state_dict": tensors, "x": _Payload(planted)}, output / "planted.ckpt")
    (output / "text.ckpt").write_bytes(pickle.dumps("no tensors"))
    yield "| `model.path` | answer | exit code |\n|---|---|---|"
    for name in ("truncated.safetensors", "page.safetensors", "xl.safetensors",
                 "incomplete.safetensors", "adapter.safetensors", "planted.ckpt", "text.ckpt",
                 "nowhere.ckpt"):  # fmt: skip
        done, _ = train(output / "runs", *TINY, f"model.path={output / name}",
                        f"model.config_path={folder}", f"data.image_dir={output / 'images'}",
                        check=False)  # fmt: skip
        text = done.stdout + done.stderr
        if done.returncode != 2 or "Traceback" in text or (output / "runs").exists():
            raise SystemExit(f"{name} was not refused properly:\n{text}")
        answer = " ".join(line[4:] for line in text.splitlines() if line.startswith("  - "))
        yield f"| `{name}` | {answer.replace(str(output), '…')} | {done.returncode} |"
    if planted.exists():
        raise SystemExit("the planted code ran")
    yield "\nThe code planted in `planted.ckpt` did not run."


class _Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.target),))

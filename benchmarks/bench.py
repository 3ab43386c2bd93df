"""What the framework costs beside a bare floor: per step, at start-up and in memory.

`python benchmarks/bench.py` prints the figures and writes `RESULTS.md`; about five minutes on two
cores. `python benchmarks/bench.py data` prints the part about images alone. Every figure stands
next to its floor, taken in turns with it, so a ratio holds although a machine's speed drifts. All
processes use one torch thread. `steps.py` does the timing inside a training process, `data.py`
that of images; this file starts processes and needs nothing but the standard library, because the
peak memory of a process begins with that of its parent.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
TRAIN = [sys.executable, str(HERE.parent / "train.py"), "experiment=demo"]
# Nothing but training, so that the first step is nearly all that follows the start.
ONLY_STEPS = ["validation.folder=null", "validation.every_n_steps=null", "preview.prompts=[]",
              "callbacks.checkpoint=null", "export.layouts=[]", "demo_quality=0",
              "scheduler.warmup_steps=0"]  # fmt: skip
COMMANDS = {
    "`--help`": ["--help"],
    "`--cfg job`": ["--cfg", "job"],
    "a misspelt key": ["optimizer.lrr=1e-3"],
    "`check_only=true`": ["check_only=true"],
}
STARTS, MEMORY_STEPS, REPEATS = 4, 40, 3


class Cost(NamedTuple):
    """What one process took."""

    cpu: float
    wall: float
    peak_mib: float


class Spread(NamedTuple):
    """Median and range of a figure."""

    middle: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        return f"{self.middle:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("images and the latent cache ...")
        run([sys.executable, str(HERE / "data.py"), name])
        images = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        if sys.argv[1:] == ["data"]:
            print("\n".join(data_section(images)))
            return
        say("a step, in turns with the floor ...")
        run([sys.executable, str(HERE / "steps.py"), name])
        steps = json.loads((folder / "steps.json").read_text(encoding="utf-8"))
        say("start-up ...")
        starts = [pair(folder, steps=1) for _ in range(STARTS)]
        say("memory ...")
        memory = pair(folder, steps=MEMORY_STEPS)
        say("commands that train nothing ...")
        commands = {
            label: [run([*TRAIN, *arguments], allowed=(0, 2)) for _ in range(REPEATS)]
            for label, arguments in COMMANDS.items()
        }
    text = "\n".join(
        [
            *heading(),
            *step_section(steps),
            *start_section(starts),
            *memory_section(memory),
            *command_section(commands),
            *data_section(images),
            "",
        ]
    )
    print(text)
    (HERE / "RESULTS.md").write_text(text, encoding="utf-8")


def pair(folder: Path, *, steps: int) -> tuple[Cost, Cost]:
    """Return what our process and the floor's take for the same number of steps."""
    # The latent cache is warm: steps.py used the same output folder.
    ours = [*TRAIN, *ONLY_STEPS, f"trainer.max_steps={steps}", f"output_dir={folder}"]
    floor = [sys.executable, str(HERE / "floor.py"), str(folder / "record.pt"), str(steps)]
    return run(ours), run(floor)


def run(command: list[str], *, allowed: tuple[int, ...] = (0,)) -> Cost:
    """Run a process to its end and return what it took by the system's own accounts."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in allowed:
            output.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{output.read().decode()}")
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    wall = time.perf_counter() - started
    return Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / unit)


def heading() -> list[str]:
    libraries = ", ".join(
        f"{name} {version(name)}"
        for name in ("torch", "lightning", "diffusers", "transformers", "peft")
    )
    return [
        "# What the framework costs",
        "",
        f"Measured {time.strftime('%Y-%m-%d')} on {os.cpu_count()} {platform.machine()} CPU cores, "
        f"{platform.system()}, Python {platform.python_version()}, {libraries}; one torch thread. "
        "Rerun with `make bench` or `python benchmarks/bench.py`.",
        "",
        "The floor is `floor.py`: the same model, adapters and optimizer in a hand-written loop. "
        "CPU seconds are the figure to trust on a shared machine. Medians, with the range in "
        "brackets; ratios are taken pair by pair.",
    ]


def step_section(steps: dict) -> list[str]:
    lines = [
        "",
        "## A step",
        "",
        "The demo as `train.py` runs it (loader, latent cache, statistics, progress, TensorBoard), "
        "optimizer steps 20 to 120 in stretches of ten; after each stretch the floor makes the "
        "same steps on the same batches. Before the first one it is given our adapter, and its "
        "loss and gradients must agree with ours.",
        "",
        "| milliseconds per step | ours | floor | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for number, name in enumerate(("CPU", "wall clock")):
        ours = [figures[number] for figures in steps["ours"]]
        floor = [figures[number] for figures in steps["floor"]]
        lines.append(row(name, ours, floor, digits=1))
    lines += [
        "",
        "Not in these figures, CPU seconds each time, at the demo's cadence:",
        "",
        "| | seconds |",
        "| --- | --- |",
    ]
    lines += [f"| {name} | {spread(taken).text(2)} |" for name, taken in steps["apart"].items()]
    return lines


def start_section(starts: list[tuple[Cost, Cost]]) -> list[str]:
    lines = [
        "",
        "## Start-up",
        "",
        "A new process from the prompt through the first step to its exit, latent cache warm; "
        "previews, validation, judged drawings, checkpoints and export are off. The floor imports "
        "torch, lightning, diffusers, transformers and peft, loads the same weights and makes the "
        "same step.",
        "",
        "| seconds | ours | floor | ratio | over |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, field in (("CPU", "cpu"), ("wall clock", "wall")):
        ours = [getattr(cost, field) for cost, _ in starts]
        floor = [getattr(cost, field) for _, cost in starts]
        over = median(a - b for a, b in zip(ours, floor, strict=True))
        lines.append(f"{row(name, ours, floor, digits=1)} {over:.1f} |")
    return lines


def memory_section(memory: tuple[Cost, Cost]) -> list[str]:
    ours, floor = (cost.peak_mib for cost in memory)
    return [
        "",
        "## Peak memory",
        "",
        f"Largest resident size of a process that makes {MEMORY_STEPS} steps: {ours:.0f} MiB, "
        f"floor {floor:.0f} MiB, ratio {ours / floor:.2f}.",
    ]


def command_section(commands: dict[str, list[Cost]]) -> list[str]:
    lines = [
        "",
        "## Commands that train nothing",
        "",
        "| `train.py` with | CPU seconds |",
        "| --- | --- |",
    ]
    lines += [
        f"| {label} | {spread([cost.cpu for cost in costs]).text(2)} |"
        for label, costs in commands.items()
    ]
    return lines


def data_section(images: dict) -> list[str]:
    size, load = images["size"], images["loading"]
    starts = images["starting"]
    return [
        "",
        "## Images",
        "",
        "Loading a cached batch of the demo without workers, beside the floor's step on it; "
        f"filling the latent cache from JPEGs of {size['side'] * 3 // 2} px at {size['side']} px "
        "with the demo's VAE, beside that VAE on ready pixels in batches as large; a start over "
        f"{size['files']:,} JPEGs whose latents are cached and whose index is warm (captions "
        "read, images bucketed, cache checked), beside listing the folder with sizes and times. "
        "CPU time; the images encoded by the clock, since a thread decodes beside the VAE.",
        "",
        "| | ours | floor | ratio |",
        "| --- | --- | --- | --- |",
        row("milliseconds a batch, beside the step", load["loader"], load["step"], digits=2),
        row(
            "images encoded a second",
            images["filling"]["ours"],
            images["filling"]["floor"],
            digits=1,
        ),
        row("seconds of a later start", starts["later"], starts["listing"], digits=2),
        "",
        f"The first start over the same files takes {starts['first'][0]:.1f} seconds.",
    ]


def row(name: str, ours: list[float], floor: list[float], *, digits: int) -> str:
    ratios = [a / b for a, b in zip(ours, floor, strict=True)]
    cells = [spread(ours).text(digits), spread(floor).text(digits), spread(ratios).text(2)]
    return f"| {name} | {' | '.join(cells)} |"


def spread(figures: list[float]) -> Spread:
    return Spread(median(figures), min(figures), max(figures))


def say(what: str) -> None:
    print(f"measuring {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

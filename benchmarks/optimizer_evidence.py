"""Evidence about optimizers, averages of the weights and the range test of rates.

    python benchmarks/evidence.py optimizers averages schedule_free rates weight_dtype \\
        optimizer_refusals

makes all of it from nothing in one call: some sixty short runs, half an hour on two idle cores.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import torch
from runs import ROOT, train

PACKAGES = {  # module -> distribution, licence as the package's own metadata or file says
    "torch": ("torch", "BSD-3-Clause"),
    "loralab": ("torch", "BSD-3-Clause"),
    "transformers": ("transformers", "Apache-2.0"),
    "bitsandbytes": ("bitsandbytes", "MIT"),
    "pytorch_optimizer": ("pytorch-optimizer", "Apache-2.0"),
    "prodigyopt": ("prodigyopt", "MIT"),
    "schedulefree": ("schedulefree", "Apache-2.0"),
    "prodigyplus": ("prodigy-plus-schedule-free", "Apache-2.0"),
}
BY_ITS_OWN_SCHEDULE = {
    "adamw_schedulefree": ("scheduler=constant",),
    "prodigy_schedulefree": ("scheduler=constant",),
    "adafactor_relative": ("scheduler=constant", "scheduler.warmup_steps=0"),
}
NEEDS_GPU = ("paged_adamw8bit",)
STEPS, LATE = 50, 45
DEFAULT_RATE = 2.5e-3  # of conf/optimizer/demo.yaml
SWEEP = tuple(DEFAULT_RATE * 2.0**n for n in range(-4, 4))
QUIET = ("demo_quality=0", "preview=none", "logger=none")


def recipes(output: Path, names: Sequence[str] = ()) -> Iterator[str]:
    """All recipes on the demo, or some: the class, the rate, the loss, the time, the resume."""
    every = sorted(path.stem for path in (ROOT / "conf" / "optimizer").glob("*.yaml"))
    names = names or [name for name in every if name not in ("demo", *NEEDS_GPU)]  # adamw_fused
    runs = _sweeps(output / "runs", names)
    found = {name: _optimizer(runs[name] / "config.yaml") for name in names}
    milliseconds = {name: _step_milliseconds(found[name]) for name in names}
    yield f"`python train.py -m optimizer={','.join(names[:2])},... trainer.max_steps={STEPS}`:"
    yield "every recipe at its own rate, which is made for real models; the small demo model takes"
    yield "20 times AdamW's (`optimizer=demo`), so this ranks no optimizers. The optimizer's own"
    yield "step is measured alone: CPU milliseconds for the demo's adapter, the median of 30. After"
    yield f"going on from step {LATE} all tensors of the exported file are compared.\n"
    base = _figures(runs["adamw"])["val/loss_base"]
    yield f"`val/loss` of the base: {base:.4f}.\n"
    yield (
        "| `optimizer=` | package, licence | class built | `initial_lr` | val/loss | step ms | "
        "against AdamW | resume bit-equal |\n|---|---|---|---|---|---|---|---|"
    )
    for name in names:
        package, licence = PACKAGES[found[name]["_target_"].partition(".")[0]]
        rates = {group["initial_lr"] for group in _groups(runs[name])}
        own = _figures(runs[name])["val/loss"]
        kind = _build(found[name])[0]
        ratio = milliseconds[name] / milliseconds["adamw"]
        equal = _resumes(output / "resumed" / name, runs[name], name)
        yield (
            f"| `{name}` | {package} {metadata(package)['Version']}, {licence} "
            f"| {type(kind).__name__} | {', '.join(f'{rate:g}' for rate in sorted(rates))} "
            f"| {own:.4f} | {milliseconds[name]:.1f} | {ratio:.2f} "
            f"| {'yes' if equal else 'NO'} |"
        )
    for name in NEEDS_GPU:
        done, _ = train(output / "refused", f"optimizer={name}", check=False)
        answer = re.search(r"  - (.*)", done.stdout + done.stderr)
        yield f"| `{name}` | needs a GPU, refused here: {answer[1] if answer else '?'} |"


def averages(output: Path) -> Iterator[str]:
    """The same run measured with the live weights and with their average; killed and resumed."""
    options = (*QUIET, "validation.every_n_steps=50", "run_id=run", "export.precision=fp32")
    live, _ = train(output / "live", *options)
    average, _ = train(output / "average", *options, "ema=default")
    yield "`python train.py ema=default` beside `python train.py`: the same training.\n"
    yield "| step | val/loss, live | val/loss, average |\n|---|---|---|"
    for (step, one), (_, other) in zip(_losses(live.stdout), _losses(average.stdout), strict=True):
        yield f"| {step} | {one:.4f} | {other:.4f} |"
    pair = [_checkpoint(output / place / "demo/run") for place in ("live", "average")]
    same = _equal(pair[0]["state_dict"], pair[1]["state_dict"])
    yield f"\nLive weights of both runs at the end: {'equal bit for bit' if same else 'DIFFERENT'}."
    yield _killed_and_resumed(output, (*options, "ema=default"), output / "average/demo/run")


def schedule_free(output: Path) -> Iterator[str]:
    """The exported file measured by another process against what validation saw."""
    yield "| recipe | steps | largest difference of `val/loss*` | of the live weights' |"
    yield "|---|---|---|---|"
    for name in ("adamw_schedulefree", "prodigy_schedulefree"):
        options = (*QUIET, "run_id=run", "export.precision=fp32", "trainer.max_steps=60")
        train(output / name, *options, f"optimizer={name}", *BY_ITS_OWN_SCHEDULE[name])
        run = output / name / "demo/run"
        [file] = run.glob("adapters/demo.safetensors")
        seen = _figures(run)
        rows = {}
        for what, source in (
            ("export", file),
            ("live", _live_file(run, output / f"{name}.safetensors")),
        ):
            place = output / f"{name}-{what}"
            train(place, *options[:4], "trainer.max_steps=1", "optimizer.lr=0.0",
                  f"adapter.init_from={source}", "scheduler=constant",
                  "scheduler.warmup_steps=0")  # fmt: skip
            again = _figures(place / "demo/run")
            names = [key for key in seen if key.startswith("val/loss") and "stderr" not in key]
            rows[what] = max(abs(seen[key] - again[key]) for key in names)
        yield f"| `{name}` | 60 | {rows['export']:.1e} | {rows['live']:.1e} |"


def rates(output: Path) -> Iterator[str]:
    """The suggestion of the range test beside a sweep of eight rates."""
    command = [str(Path(sys.executable).parent / "loralab"), "lr-find", f"output_dir={output}",
               "--chart", str(ROOT / "docs" / "lr-find.png")]  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, cpu = time.perf_counter() - started, _child_cpu_seconds()
    said = re.search(r"optimizer\.lr=(\S+)", done.stdout)
    assert said is not None, done.stdout
    suggestion = float(said[1])
    _, swept = train(output, "-m", f"optimizer.lr={','.join(f'{rate:g}' for rate in SWEEP)}",
                     *QUIET)  # fmt: skip
    found = {}
    for state in output.rglob("run.json"):
        rate = re.search(r"optimizer\.lr=([\d.e-]+)", state.parent.name)
        assert rate is not None
        found[float(rate[1])] = _figures(state.parent)["val/loss"]
    best = min(found, key=lambda rate: found[rate])
    yield f"`loralab lr-find` suggests **{suggestion:g}**: {seconds:.0f} s,"
    yield f"{cpu:.0f} s of CPU time. A sweep of eight rates, each the whole default run: "
    yield f"{swept:.0f} s, {_child_cpu_seconds() - cpu:.0f} s of CPU time; its best is"
    yield f"**{best:g}**. Suggestion over best: {suggestion / best:.2f}.\n"
    yield "| `optimizer.lr` | val/loss |\n|---|---|"
    for rate in SWEEP:
        yield f"| {rate:g} | {found[rate]:.4f} |"
    yield "\n![the curve of the range test](lr-find.png)"


def weight_dtype(output: Path) -> Iterator[str]:
    """The default run with the adapter's weights in float32 and in bfloat16."""
    yield "| `adapter.weight_dtype` | val/loss | bytes of the weights | of the optimizer's state |"
    yield "|---|---|---|---|"
    for word in ("fp32", "bf16"):
        train(output / word, *QUIET, f"adapter.weight_dtype={word}", "run_id=run")
        run = output / word / "demo/run"
        content = _checkpoint(run)
        weights = sum(tensor.nbytes for tensor in content["state_dict"].values())
        states = content["optimizer_states"][0]["state"].values()
        state = sum(v.nbytes for s in states for v in s.values() if isinstance(v, torch.Tensor))
        yield f"| {word} | {_figures(run)['val/loss']:.4f} | {weights:,} | {state:,} |"


def _child_cpu_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


def wrong_values(output: Path) -> Iterator[str]:
    """Wrong settings of optimizers and averages, and the sentence each gets."""
    commands: Sequence[tuple[str, ...]] = (
        ("optimizer=lino",),
        ("optimizer=lion", "+optimizer.beta=0.9"),
        ("optimizer=prodigy", "optimizer.lr=1e-4"),
        ("optimizer=dadapt_adam", "adapter.text_encoder.lr_scale=0.5"),
        ("optimizer=adamw_schedulefree",),
        ("optimizer=adafactor_relative",),
        ("optimizer=adafactor_relative", "scheduler=constant", "scheduler.warmup_steps=0",
         "optimizer.lr=1e-3"),
        ("optimizer=adamw", "optimizer.betas=[0.9,1.5]"),
        ("optimizer=adamw", "optimizer.lr=-1"),
        ("optimizer=paged_adamw8bit",),
        ("ema=default", "ema.decay=1.5"),
        ("ema=default", "ema.use_for=[]"),
        ("ema=default", "ema.start_step=1000"),
        ("ema=default", "optimizer=adamw_schedulefree", "scheduler=constant"),
        ("fused_backward=true", "trainer.accumulate_grad_batches=2"),
        ("adapter.weight_dtype=bf16", "optimizer=lion"),
        ("adapter.weight_dtype=bf16", "ema=default", "adapter=dora"),
        ("adapter.weight_dtype=fp8",),
        ("result_metrics.clip_path=models/none",),
        ("result_metrics.clip_path=docs", "preview.every_n_steps=0"),
        ("optimized_metric=result/clip_prompt",),
    )  # fmt: skip
    yield "| command: `python train.py` … | answer |\n|---|---|"
    for overrides in commands:
        done, _ = train(output / "runs", *overrides, check=False)
        text = done.stdout + done.stderr
        if done.returncode != 2 or "Traceback" in text or (output / "runs").exists():
            raise SystemExit(f"{overrides} was not refused properly:\n{text}")
        answer = " ".join(line[4:] for line in text.splitlines() if line.startswith("  - "))
        yield f"| `{' '.join(overrides)}` | {answer.replace('|', '/')} |"


def _sweeps(output: Path, names: Sequence[str]) -> dict[str, Path]:
    """Run recipes in as few processes as their schedules allow; return the run of each."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        alike.setdefault(BY_ITS_OWN_SCHEDULE.get(name, ()), []).append(name)
    runs = {}
    for number, (extra, group) in enumerate(sorted(alike.items(), reverse=True)):
        place = output / str(number)
        train(place, "-m", f"optimizer={','.join(group)}", f"trainer.max_steps={STEPS}", *QUIET,
              f"callbacks.checkpoint.every_n_steps={LATE}", "export.precision=fp32",
              f"data.latent_cache.directory={output.parent / 'latents'}", *extra)  # fmt: skip
        for state in place.rglob("run.json"):
            name = re.search(r"optimizer=(\w+)", state.parent.name)
            runs[name[1] if name else group[0]] = state.parent
    return runs


def _resumes(place: Path, run: Path, name: str) -> bool:
    """Go on from a late checkpoint of a copy; tell whether the exported tensors are the same."""
    from safetensors.torch import load_file

    copy = place / "demo" / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "adapters")
    train(place, f"optimizer={name}", f"trainer.max_steps={STEPS}", *QUIET,
          f"callbacks.checkpoint.every_n_steps={LATE}", "export.precision=fp32",
          f"data.latent_cache.directory={place.parents[1] / 'latents'}",
          *BY_ITS_OWN_SCHEDULE.get(name, ()),
          f"resume={copy / 'checkpoints' / f'step-{LATE:06d}.ckpt'}")  # fmt: skip
    return _equal(*(load_file(p / "adapters/demo.safetensors") for p in (run, copy)))


def _step_milliseconds(recipe: dict[str, Any]) -> float:
    """Return the median CPU time of the optimizer's own step for the demo's adapter."""
    torch.set_num_threads(1)
    optimizer, parameters = _build(recipe)
    times = []
    for _ in range(32):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        started = time.process_time()
        optimizer.step()
        times.append(time.process_time() - started)
    return sorted(times[2:])[15] * 1e3


def _build(recipe: dict[str, Any]) -> tuple[Any, list[torch.nn.Parameter]]:
    """Return the optimizer on parameters of the demo's shapes."""
    from loralab.app.optimizers import optimizer_maker
    from loralab.training.averaging import is_schedule_free

    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape) * 0.02) for shape in _shapes]
    optimizer = optimizer_maker(recipe)([{"params": parameters, "name": "unet"}])
    if is_schedule_free(optimizer):
        optimizer.train()
    return optimizer, parameters


_shapes: list[torch.Size] = []  # of the demo's adapter, noted when the first run is read


def _optimizer(config: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    if not _shapes:
        _shapes.extend(t.shape for t in _checkpoint(config.parent)["state_dict"].values())
    recipe = OmegaConf.to_container(OmegaConf.load(config).optimizer)
    assert isinstance(recipe, dict)
    return {str(key): value for key, value in recipe.items()}


def _checkpoint(run: Path) -> dict[str, Any]:
    last = sorted((run / "checkpoints").glob("step-*.ckpt"))[-1]
    content: dict[str, Any] = torch.load(last, weights_only=True)
    return content


def _groups(run: Path) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = _checkpoint(run)["optimizer_states"][0]["param_groups"]
    return groups


def _figures(run: Path) -> dict[str, float]:
    metrics: dict[str, float] = json.loads((run / "run.json").read_text())["metrics"]
    return metrics


def _losses(stdout: str) -> list[tuple[int, float]]:
    """Return step and val/loss of every validation that a run printed."""
    found = re.findall(r"^step (\d+): val/loss ([\d.]+)", stdout, re.MULTILINE)
    return [(int(step), float(loss)) for step, loss in found]


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _killed_and_resumed(output: Path, options: tuple[str, ...], whole: Path) -> str:
    """Kill the run with -9 at step 77, continue it, and compare it with the whole one."""
    from safetensors.torch import load_file

    place = output / "killed"
    options = (
        *options,
        "callbacks.progress.every_n_steps=1",
        "callbacks.checkpoint.every_n_steps=30",
    )
    command = [sys.executable, "train.py", f"output_dir={place}", *options]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 77/"):
                process.send_signal(signal.SIGKILL)
                break
    train(place, *options, "resume=auto")
    runs = (whole, place / "demo/run")
    one, other = (_checkpoint(run)["callbacks"]["MovingAverage"]["weights"] for run in runs)
    files = [load_file(run / "adapters/demo.safetensors") for run in runs]
    equal = _equal(one, other) and _equal(*files)
    return (
        "Killed with -9 at step 77, continued from step 60: the average and the exported file are "
        f"{'equal bit for bit to' if equal else 'DIFFERENT from'} those of no interruption."
    )


def _live_file(run: Path, path: Path) -> Path:
    """Write the live weights of a run's last checkpoint as an adapter file of its own."""
    from safetensors.torch import load_file, save_file

    exported = load_file(run / "adapters/demo.safetensors")
    checkpoint = _checkpoint(run)
    live, average = checkpoint["state_dict"], checkpoint["export_weights"]
    swapped = {}
    for key, tensor in exported.items():
        twin = next((n for n, t in average.items() if t.shape == tensor.shape
                     and torch.equal(t, tensor)), None)  # fmt: skip
        swapped[key] = live[twin].clone() if twin else tensor
    save_file(swapped, path)
    return path

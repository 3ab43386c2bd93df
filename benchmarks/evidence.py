"""Rerun what the documentation claims and write `docs/evidence.md`: `make evidence`.

Every section starts new processes with the defaults a user has. `ARGS="resume sweep"` reruns some
sections; the others keep their text. `clone` needs the network of the package index.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import adapter_evidence
import data_evidence
import demo_evidence
import family_evidence
import objective_evidence
import optimizer_evidence
import settings_evidence
import tool_evidence
from runs import ROOT, only_run, train

PAGE = ROOT / "docs" / "evidence.md"
HEAD = """# Evidence

Written by `make evidence`, which reruns everything below in new processes.
"""


def default_run(output: Path) -> Iterator[str]:
    """The default experiment, as it is."""
    done, seconds = train(output)
    folder = only_run(output)
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    shutil.copy(folder / "preview.png", ROOT / "docs" / "preview.png")
    yield f"`python train.py`: {seconds:.0f} s from the prompt to the end.\n"
    yield "| figure | value |\n|---|---|"
    for name in ("val/loss_base", "val/loss"):
        yield f"| `{name}` | {metrics[name]:.4f} |"
    yield f"| change | {100 * (metrics['val/loss'] / metrics['val/loss_base'] - 1):+.1f} % |\n"
    yield "![base, LoRA and training images](preview.png)\n"
    yield f"```\n{_outcome(done.stdout)}\n```"


def clone(output: Path) -> Iterator[str]:
    """Fresh clones of the committed state: `make train`, `make test`."""
    place = output / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(place)], check=True)
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    for target in ("train", "test"):
        started = time.perf_counter()
        done = subprocess.run(
            ["make", target],
            cwd=place,
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        seconds = time.perf_counter() - started
        if done.returncode != 0:
            raise SystemExit(done.stdout[-4000:] + done.stderr[-4000:])
        lines = done.stdout.strip().splitlines()
        last = next((s for s in reversed(lines) if re.search(r"passed|Loss on held-out", s)), "")
        installed = sum(
            path.stat().st_size for path in (place / ".venv").rglob("*") if path.is_file()
        )
        yield (
            f"- `make {target}`: {seconds:.0f} s with set-up, {installed / 2**30:.2f} GiB in "
            f"`.venv`. {last.strip('= ')}"
        )


def export(output: Path) -> Iterator[str]:
    """Both files in a diffusers pipeline, alpha not equal to rank, against the live model."""
    from roundtrip import largest_pixel_difference

    train(output, "adapter.rank=8", "adapter.alpha=5", "export.precision=fp32",
          "trainer.max_steps=60", "preview.prompts=[]")  # fmt: skip
    yield "Rank 8, alpha 5, 60 steps; picture values are in [0, 1].\n"
    yield "| file | largest pixel difference from the live model | base from live |\n|---|---|---|"
    for name, difference, effect in largest_pixel_difference(only_run(output)):
        yield f"| `{name}` | {difference:.2e} | {effect:.2e} |"


def resume(output: Path) -> Iterator[str]:
    """Killed with -9 in the middle of an epoch, continued, compared with no interruption."""
    from roundtrip import compare_runs

    options = ("trainer.max_steps=60", "trainer.log_every_n_steps=1", "preview.prompts=[]",
               "callbacks.checkpoint.every_n_steps=12", "callbacks.progress.every_n_steps=1",
               "adapter.dropout=0.1", "trainer.accumulate_grad_batches=2", "run_id=run",
               "export.precision=fp32")  # fmt: skip
    train(output / "whole", *options)
    command = [sys.executable, "train.py", f"output_dir={output / 'killed'}", *options]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 33/"):
                process.send_signal(signal.SIGKILL)
                break
    kept = [path.name for path in (output / "killed/demo/run/checkpoints").glob("*.ckpt")]
    train(output / "killed", *options, "resume=auto")
    yield f"Killed at step 33 of 60 with {', '.join(sorted(kept))} on disk; 5 steps an epoch.\n"
    yield "| compared | equal bit for bit |\n|---|---|"
    for name, equal in compare_runs(output / "whole/demo/run", output / "killed/demo/run"):
        yield f"| {name} | {'yes' if equal else 'NO'} |"


def sweep(output: Path) -> Iterator[str]:
    """Four runs by one command, ranked in TensorBoard."""
    from roundtrip import hparams_rows, screenshot

    _, seconds = train(output, "-m", "optimizer.lr=1e-4,1e-3", "adapter.rank=4,16",
                       "preview.prompts=[]")  # fmt: skip
    files = len(list((output / "latent-cache").rglob("*.safetensors")))
    yield f"`python train.py -m optimizer.lr=1e-4,1e-3 adapter.rank=4,16`: {seconds:.0f} s,"
    yield f"{files} latent files shared by all runs.\n"
    yield "| run | val/loss | val/loss_base |\n|---|---|---|"
    for name, ours, base in sorted(hparams_rows(output), key=lambda row: row[1]):
        yield f"| `{name}` | {ours:.4f} | {base:.4f} |"
    if screenshot(output, ROOT / "docs" / "hparams.png"):
        yield "\n![TensorBoard's HPARAMS tab](hparams.png)"


def bench(output: Path) -> Iterator[str]:
    """Speed and memory beside the floor."""
    subprocess.run([sys.executable, "benchmarks/bench.py"], cwd=ROOT, check=True)
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    yield re.sub(r"^#", "###", text, flags=re.MULTILINE)


def refusals(output: Path) -> Iterator[str]:
    """Wrong commands, the sentence each gets, the seconds it takes."""
    from wrong_commands import prepare, wrong_commands

    prepare(output)
    yield "| command: `python train.py` … | answer | s |\n|---|---|---|"
    for overrides in wrong_commands(output):
        done, seconds = train(output / "runs", *overrides, check=False)
        text = done.stdout + done.stderr
        if done.returncode != 2 or "Traceback" in text or (output / "runs").exists():
            raise SystemExit(f"{overrides} was not refused properly:\n{text}")
        answer = " ".join(line[4:] for line in text.splitlines() if line.startswith("  - "))
        shown = " ".join(overrides).replace(str(output), "…").replace("|", "\\|")
        answer = answer.replace(str(output), "…").replace(str(ROOT), ".").replace("|", "\\|")
        yield f"| `{shown}` | {answer} | {seconds:.1f} |"


SECTIONS: dict[str, tuple[str, Callable[[Path], Iterator[str]]]] = {
    "default": ("The default run", default_run),
    "base": ("The embedded base", demo_evidence.base),
    "style": ("A style learned, the content kept", demo_evidence.style),
    "subject": ("A subject learned, its class kept", demo_evidence.subject),
    "pretraining": ("Pretraining, killed and continued", demo_evidence.pretraining),
    "optimizers": ("Every optimizer", optimizer_evidence.recipes),
    "averages": ("The average of the weights", optimizer_evidence.averages),
    "schedule_free": ("Schedule-free optimizers", optimizer_evidence.schedule_free),
    "rates": ("Finding a rate", optimizer_evidence.rates),
    "weight_dtype": ("Weights in bfloat16", optimizer_evidence.weight_dtype),
    "optimizer_refusals": ("Wrong optimizers", optimizer_evidence.wrong_values),
    "order": ("The order of images", data_evidence.order),
    "cache": ("What the latent cache takes for new", data_evidence.cache),
    "filling": ("The latent cache, killed and shared", data_evidence.filling),
    "bad_images": ("Unusable images", data_evidence.bad_images),
    "data": ("What images cost", data_evidence.speed),
    "data_settings": ("Settings of images and captions", data_evidence.settings),
    "clone": ("A fresh clone", clone),
    "families": ("Model families", family_evidence.families),
    "full_size": ("A model of full size", family_evidence.full_size),
    "checkpoints": ("Broken models", family_evidence.checkpoints),
    "export": ("The exported file", export),
    "reloading": ("Adapter files in other programs", adapter_evidence.reloading),
    "keys": ("Keys of adapter files", adapter_evidence.keys),
    "metadata": ("Hashes and metadata of adapter files", adapter_evidence.metadata),
    "editing": ("Adapters merged, extracted, resized", tool_evidence.editing),
    "memory": ("Memory of the tools", tool_evidence.memory),
    "broken": ("Broken adapter files", tool_evidence.broken),
    "resume": ("Stopped and continued", resume),
    "sweep": ("A sweep", sweep),
    "replay": ("Recorded and replayed", objective_evidence.replay),
    "windows": ("A step cut into micro-batches", objective_evidence.windows),
    "timesteps": ("Timesteps spread over a step", objective_evidence.timesteps),
    "validation": ("How far a validation can be trusted", objective_evidence.validation),
    "overfitting": ("A run that overfits", objective_evidence.overfitting),
    "settings": ("The 65 settings", settings_evidence.table),
    "loading": ("Settings files of other programs", settings_evidence.loading),
    "queue": ("A queue, killed and started again", settings_evidence.queue),
    "reading": ("What a new user reads", settings_evidence.outputs),
    "bench": ("Speed", bench),
    "refusals": ("Wrong commands", refusals),
}


def main() -> None:
    """Rerun the chosen sections and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", help=f"some of {', '.join(SECTIONS)}; default all")
    chosen = parser.parse_args().sections or list(SECTIONS)
    if unknown := set(chosen) - SECTIONS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    texts = _read_page()
    for name in chosen:
        print(f"evidence: {name}", flush=True)
        with _scratch() as output:
            texts[name] = "\n".join(SECTIONS[name][1](output))
        _write_page(texts)


def _write_page(texts: dict[str, str]) -> None:
    body = [HEAD, f"Machine: {os.cpu_count()} CPU cores, Python {platform.python_version()}."]
    for name, (title, _) in SECTIONS.items():
        if name in texts:
            body.append(f"\n## {title}\n<!-- {name} -->\n{texts[name].strip()}")
    PAGE.write_text("\n".join(body) + "\n")


def _read_page() -> dict[str, str]:
    if not PAGE.is_file():
        return {}
    pieces = re.split(r"^## .*\n<!-- (\w+) -->\n", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="evidence-") as folder:
        yield Path(folder)


def _outcome(stdout: str) -> str:
    text = stdout[stdout.index("Done.") :]
    return re.sub(r'[^\s"]*/evidence-\w+', "outputs", text).strip()


if __name__ == "__main__":
    main()

"""Evidence about the settings: files of other programs, and a queue that is killed."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from runs import ROOT
from safetensors.torch import save_file

FILES = ROOT / "tests" / "settings_files"
LORALAB = [sys.executable, "-c", "from loralab.cli.main import main; main()"]
DEMO = ROOT / "src" / "loralab" / "demo"


def table(output: Path) -> Iterator[str]:
    """How many rows of the table have what they need."""
    from loralab.config.settings_table import features, settings

    verdicts = [row.verdict for row in settings().values()]
    yield f"{len(verdicts)} settings in [settings.md](settings.md), each with the keys or the"
    yield "command that do the same and the test that proves it: "
    counts = [verdicts.count(word) for word in ("so", "partly", "not so")]
    yield "{} are what the guide says, {} partly, {} are not.".format(*counts)
    rows = [*settings().values(), *features().values()]
    named = sorted({row.test for row in rows})
    green, told = _green(named)
    proved = sum(row.test in green for row in settings().values())
    yield f"pytest of the {len(named)} named tests: {told}. So {proved} of {len(verdicts)} settings"
    yield f"and {sum(row.test in green for row in features().values())} of {len(features())} "
    yield "features of the guide's other readings are proved by a test that passed.\n"
    yield "| feature | read into | keys | test |\n|---|---|---|---|"
    for row in features().values():
        keys = ", ".join(f"`{key}`" for key in row.keys) or f"`{row.command}`"
        yield f"| `{row.name}` | {', '.join(row.settings)} | {keys} | `{row.test}` |"


def _green(tests: Sequence[str]) -> tuple[set[str], str]:
    """Run tests, named `FILE::FUNCTION`, in a new process; return those that passed, and sums."""
    ids = [_place(*name.split("::")) for name in tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-m", "slow or not slow", *ids],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    passed = set(re.findall(r"^PASSED \S*?(test_\w+\.py::\w+)", done.stdout, re.MULTILINE))
    other = set(re.findall(r"^(?:FAILED|ERROR) \S*?(test_\w+\.py::\w+)", done.stdout, re.MULTILINE))
    return passed - other, done.stdout.strip().splitlines()[-1].strip("= ")


def _place(file: str, function: str) -> str:
    """Return a test as pytest wants it; files of one name lie in several folders."""
    found = (ROOT / "tests").rglob(file)
    path = next(path for path in found if f"def {function}(" in path.read_text(encoding="utf-8"))
    return f"{path.relative_to(ROOT)}::{function}"


def loading(output: Path) -> Iterator[str]:
    """Every settings file of the tests, read by the command."""
    yield "`loralab settings load FILE --out …/NAME.yaml`, then `loralab settings save` of the"
    yield "experiment it wrote. *Same* counts the settings that the file gives and the saved JSON"
    yield "gives back, of those among the 65.\n"
    yield "| file | settings | taken over | no equivalent | mistakes found | refused | same |"
    yield "|---|---|---|---|---|---|---|"
    mistakes = []
    for file in sorted(FILES.iterdir()):
        path = _placed(file, output)
        out = output / "conf" / "experiment" / f"loaded_{file.stem}.yaml"
        text = _loralab("settings", "load", str(path), "--out", str(out)).stdout
        head, tail = text.splitlines()[0], next(s for s in text.splitlines() if " mapped, " in s)
        counts = re.findall(r"\d+", tail)
        given = re.findall(r"(\d+) settings$", head)[0]
        same = _saved_again(path, out, output)
        yield f"| `{path.name}` | {given} | {' | '.join(counts[:4])} | {same} |"
        section = re.search(r"a mistake in the original:\n((?:  - .*\n)+)", text)
        mistakes += [f"- `{file.name}` {line[4:]}" for line in (section[1] if section else "")
                     .splitlines()]  # fmt: skip
    yield "\nMistakes in the originals; TOML of sd-scripts and JSON of its launchers are read by"
    yield "their own programs without any check:\n"
    yield from mistakes


def queue(output: Path) -> Iterator[str]:
    """Four files, one broken; killed with -9 in the third run and started again."""
    folder, runs = output / "queue", output / "runs"
    folder.mkdir()
    numbered = output / "images" / "1_icon"
    shutil.copytree(DEMO / "images" / "train", numbered)
    for number in "1234":
        values = {
            "base_model": str(DEMO / "base"), "img_folder": str(numbered.parent),
            "output_folder": str(runs), "change_output_name": f"run-{number}", "net_dim": 4,
            "alpha": 4, "learning_rate": 1e-3, "mixed_precision": "no", "use_8bit_adam": False,
            "clip_skip": 1, "batch_size": 8, "train_resolution": 64, "bucket_reso_steps": 16,
            "min_bucket_resolution": 32, "max_bucket_resolution": 128, "num_workers": 0,
            "max_clip_token_length": 75, "max_steps": 60 if number == "3" else 20,
            "scheduler": "cosine", "save_every_n_epochs": None,
        }  # fmt: skip
        text = json.dumps(values) if number != "2" else json.dumps(values)[:-9]
        (folder / f"{number}.json").write_text(text)
    options = ("model.allow_demo=true", "trainer=cpu", "cpu_threads=1",
               "callbacks.checkpoint.every_n_steps=10")  # fmt: skip
    command = [*LORALAB, "queue", str(folder), *options]
    with (output / "first.txt").open("w") as log, subprocess.Popen(
        command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
    ) as process:  # fmt: skip
        while not list(runs.glob("run-3/*/checkpoints/step-000020.ckpt")):
            if process.poll() is not None:
                raise SystemExit((output / "first.txt").read_text())
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    time.sleep(2)
    yield "Four files, the second one cut short. `loralab queue FOLDER` was killed with -9 in the"
    yield "third run, after its checkpoint of step 20 of 60.\n"
    yield "| | in the folder | complete/ | failed/ | run folders |\n|---|---|---|---|---|"
    yield _row("after the kill", folder, runs)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    yield _row("started again", folder, runs)
    went_on = re.search(r"continues from.*?(step-\d+\.ckpt)", done.stdout, re.DOTALL)
    states = [json.loads(path.read_text()) for path in sorted(runs.glob("*/*/run.json"))]
    yield f"\nExit codes: killed, then {done.returncode}. The third run went on from"
    yield f"`{went_on[1] if went_on else 'NOTHING'}`; its run folder is the same. States:"
    yield ", ".join(f"{state['state']} after {state.get('steps')} steps" for state in states) + "."
    reason = (folder / "failed" / "2.json.log").read_text().strip().replace(str(output), "…")
    yield f"The reason beside the failed file: *{reason}*"


def outputs(output: Path) -> Iterator[str]:
    """What a new user reads first."""
    for arguments in (("--help",), ("check_only=true",)):
        done = subprocess.run(
            [sys.executable, "train.py", *arguments, *([f"output_dir={output}"] * ("=" in
             arguments[0]))], cwd=ROOT, capture_output=True, text=True, check=True)  # fmt: skip
        shown = done.stdout.replace(str(output), "outputs").replace(str(ROOT), ".").rstrip()
        yield f"`python train.py {' '.join(arguments)}`\n\n```\n{shown}\n```\n"
    text = _loralab("describe", "adapter.unet").stdout.rstrip()
    yield f"`loralab describe adapter.unet`\n\n```\n{text}\n```"


def _row(when: str, folder: Path, runs: Path) -> str:
    def names(place: Path, pattern: str = "*.json") -> str:
        return ", ".join(sorted(path.name for path in place.glob(pattern))) or "nothing"

    made = ", ".join(sorted(path.parent.parent.name for path in runs.glob("*/*/run.json")))
    cells = (names(folder), names(folder / "complete"), names(folder / "failed"), made)
    return f"| {when} | {' | '.join(cells)} |"


def _placed(file: Path, output: Path) -> Path:
    """Return a copy with real places in it; metadata in an adapter file."""
    text = file.read_text()
    places = {"BASE": DEMO / "base", "IMAGES": DEMO / "images", "CLASSES": DEMO / "images",
              "OUTPUT": output / "runs"}  # fmt: skip
    for word, place in places.items():
        text = text.replace(word, str(place))
    if file.name == "metadata.json":
        path = output / "metadata.safetensors"
        name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.alpha"
        save_file({name: torch.tensor(4.0)}, path, metadata=json.loads(text))
        return path
    path = output / file.name
    path.write_text(text)
    return path


def _saved_again(path: Path, experiment: Path, output: Path) -> str:
    """Return how many settings come back from the experiment, of those the file gives."""
    if path.suffix != ".json":
        return ""
    given = json.loads(path.read_text())
    saved = output / f"{path.stem}-saved.json"
    _loralab("settings", "save", str(saved), f"experiment={experiment.stem}",
             "model.allow_demo=true", "--config-dir", str(experiment.parents[1]))  # fmt: skip
    found = json.loads(saved.read_text())
    common = [name for name in given if name in found]
    same = sum(_alike(found[name], given[name]) for name in common)
    return f"{same} of {len(common)}" if "launcher" in path.name else ""


def _alike(one: object, other: object) -> bool:
    """Compare values; a text that spells a number is that number."""
    return one == other or str(one) == str(other) or _number(one) == _number(other) is not None


def _number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def _loralab(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*LORALAB, *arguments], cwd=ROOT, capture_output=True, text=True,
                          check=False)  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"loralab {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done

"""Evidence about images: their order, the latent cache, unusable files, speed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from runs import ROOT, train

sys.path.insert(0, str(ROOT))
from loralab.data.cache_folder import cache_files
from loralab.data.moment_store import is_sound, unfinished_files
from tests.effects.registry import registered_effects
from tests.integration.test_defects import DEFECTS
from tests.tiny import make_images

TRAIN_ONLY = ("experiment=smoke", "model.allow_demo=true", "validation.folder=null",
              "validation.every_n_steps=null", "callbacks.checkpoint=null",
              "data.captions.caption_dropout=0.1", "scheduler.warmup_steps=0")  # fmt: skip
KILLS, IMAGES_A_KILL = 20, 24


def order(output: Path) -> Iterator[str]:
    """The receipts of one run, however its images are brought to it."""
    folder = output / "images"
    make_images(folder, count=22)
    own = (*TRAIN_ONLY, f"data.image_dir={folder}", "data.batch_size=2", "trainer.max_steps=12",
           "data.flip_probability=0.5", "data.captions.tag_dropout=0.1")  # fmt: skip
    accumulated = "trainer.accumulate_grad_batches=2"
    ways = {
        "no workers": (accumulated,),
        "1 worker": (accumulated, "data.num_workers=1"),
        "2 workers, 5 batches ahead": (
            accumulated,
            "data.num_workers=2",
            "data.prefetch_factor=5",
        ),
        "4 workers that end with each epoch": (
            accumulated,
            "data.num_workers=4",
            "data.persistent_workers=false",
        ),
        "no latent cache": (accumulated, "data.latent_cache.enabled=false"),
        "latents in memory": (accumulated, "data.latent_cache.storage=memory"),
        "2 processes (gloo)": ("trainer.devices=2", "+trainer.strategy=ddp"),
        "2 processes, 2 workers each": (
            "trainer.devices=2",
            "+trainer.strategy=ddp",
            "data.num_workers=2",
        ),
        "another seed": (accumulated, "seed=1"),
    }
    yield "22 images, shuffled tags, tag and caption dropout, flips; 12 steps of two micro-batches."
    yield "A receipt is a hash over content, final caption, cut and flip of every sample.\n"
    yield "| `python train.py` with | receipts of its epochs | as the first |\n|---|---|---|"
    first: list[str] = []
    for number, (name, way) in enumerate(ways.items()):
        train(output, *own, *way, f"run_id={number}")
        account = json.loads((output / "smoke" / str(number) / "data.json").read_text())
        receipts = [receipt["sha256"] for receipt in account["order_receipts"]]
        first = first or receipts
        shown = " ".join(receipt[:8] for receipt in receipts)
        yield f"| {name} | {shown} | {'equal' if receipts == first else 'different'} |"


def cache(output: Path) -> Iterator[str]:
    """What is encoded anew after a change, and what is not."""
    folder = output / "images"
    first, *_ = files = make_images(folder, count=12)
    own = (*TRAIN_ONLY, "trainer.max_steps=1")
    yield f"{len(files)} images; after each line everything is put back.\n"
    yield "| changed | images encoded anew |\n|---|---|"

    def encoded(*overrides: str, place: Path = folder) -> str:
        done, _ = train(output, *own, *overrides, f"data.image_dir={place}")
        if "latent cache: complete" in done.stdout:
            return "none"
        return re.findall(r"latent cache: \d+/(\d+) images", done.stdout)[-1]

    yield f"| everything is new | {encoded()} |"
    yield f"| nothing | {encoded()} |"
    for name, overrides in {
        "resolution": ["data.resolution=96"],
        "crop (another bucket shape)": ["data.buckets.sizes=[64x64]"],
        "flip": ["data.flip_probability=1.0"],
        "number format of the file": ["data.latent_cache.precision=fp16"],
        "number format of the VAE": ["model.vae_dtype=bf16"],
        "filter": ["data.resize_filter=area"],
        "background": ["data.background=black"],
    }.items():
        yield f"| {name}: `{overrides[0]}` | {encoded(*overrides)} |"
    original = first.read_bytes()
    image = Image.open(first).convert("RGB")
    image.putpixel((5, 5), (1, 2, 3))
    image.save(first)
    yield f"| one pixel of one image | {encoded()} |"
    first.write_bytes(original)
    base = shutil.copytree(ROOT / "src/loralab/demo/base", output / "base")
    yield f"| VAE copied elsewhere | {encoded(f'model.path={base}')} |"
    _change_one_weight(base)
    yield f"| VAE, one weight | {encoded(f'model.path={base}')} |"
    os.utime(first)
    for ending in (".png", ".txt"):
        first.with_suffix(ending).rename(folder / f"renamed{ending}")
    moved = folder.rename(output / "elsewhere")
    yield f"| one file touched and renamed, the folder moved | {encoded(place=moved)} |"


def _change_one_weight(base: Path) -> None:
    from safetensors.torch import load_file, save_file

    (file,) = (base / "vae").glob("*.safetensors")
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})


def filling(output: Path) -> Iterator[str]:
    """Killed with -9 while it fills the latent cache, again and again; two at once."""
    folder, place = output / "images", output / "latent-cache"
    total = KILLS * IMAGES_A_KILL + 100
    make_images(folder, count=total)
    command = [sys.executable, "train.py", *TRAIN_ONLY, f"data.image_dir={folder}",
               f"output_dir={output}", "trainer.max_steps=1"]  # fmt: skip
    seen, rewritten = _files(place), 0
    rng, killed, unfinished = random.Random(0), 0, 0
    for _ in range(KILLS):
        goal = len(seen) + rng.randint(1, IMAGES_A_KILL)
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and len(_files(place)) < goal:
                time.sleep(rng.uniform(0, 0.05))  # a look takes time of the run's
            process.send_signal(signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
        unfinished += len(list((place / "unfinished").glob("*.part")))
        now = _files(place)
        rewritten += sum(now.get(name) != identity for name, identity in seen.items())
        seen = now
    kept = len(seen)
    done, _ = train(output, *command[2:-2], "trainer.max_steps=1")
    (encoded,) = set(re.findall(r"latent cache: \d+/(\d+) images", done.stdout))
    now = _files(place)
    rewritten += sum(now[name] != identity for name, identity in seen.items())
    yield f"{total} images; {killed} of {KILLS} starts killed while they encoded."
    yield f"{kept} latents were kept, {unfinished} half-written files seen after kills."
    yield f"The next start encoded {encoded}: {total} - {kept} = {total - kept}."
    yield f"Files written a second time: {rewritten}. {_state(place)}\n"
    yield from _at_once(output / "at-once", folder, total)


def _at_once(output: Path, folder: Path, total: int) -> Iterator[str]:
    place = output / "latent-cache"
    commands = [
        [sys.executable, "train.py", *TRAIN_ONLY, f"data.image_dir={folder}",
         "trainer.max_steps=1", f"output_dir={output}", f"run_id={name}"]
        for name in "ab"
    ]  # fmt: skip
    processes = [subprocess.Popen(c, cwd=ROOT, stdout=subprocess.DEVNULL) for c in commands]
    seen, rewritten = {}, 0
    while any(process.poll() is None for process in processes):
        time.sleep(0.02)
        now = _files(place)
        rewritten += sum(seen.get(name, identity) != identity for name, identity in now.items())
        seen |= now
    codes = sorted(process.wait() for process in processes)
    yield f"Two runs at once on an empty cache end with {codes}; {len(_files(place))} files of"
    yield f"{total}, {rewritten} seen to be written twice. {_state(place)}"


def _files(place: Path) -> dict[str, tuple[int, int]]:
    """Return what would change if a file of the cache were written again."""
    return {
        file.key: (stat.st_ino, stat.st_mtime_ns)
        for file in cache_files(place)
        if (stat := file.path.stat())
    }


def _state(place: Path) -> str:
    sound = sum(is_sound(file.path.read_bytes(), file.key) for file in cache_files(place))
    return f"{sound} files are sound to the last bit, {len(unfinished_files(place))} unfinished."


def bad_images(output: Path) -> Iterator[str]:
    """A folder with twelve planted defects."""
    folder = output / "images"
    images = make_images(folder, count=6 + len(DEFECTS))
    for path, (_, plant, _) in zip(images[6:], DEFECTS, strict=True):
        plant(path)
    own = (*TRAIN_ONLY, f"data.image_dir={folder}")
    done, _ = train(output / "runs", *own, check=False)
    text = done.stdout + done.stderr
    told = sum(says in text for _, _, says in DEFECTS)
    left = "nothing" if not (output / "runs").exists() else "files"
    yield f"By default: exit code {done.returncode}, {told} of {len(DEFECTS)} defects told,"
    yield f"{left} left behind.\n"
    train(output / "runs", *own, "data.on_bad_image=skip", "run_id=a")
    account = json.loads((output / "runs/smoke/a/data.json").read_text())
    figures = account["figures"]
    parts = figures["seen"] + figures["repeated"] + figures["fillers"]
    yield "With `data.on_bad_image=skip` it trains: "
    yield ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in figures.items()) + "."
    yield f"Seen, repeated and fillers make {parts} of {figures['samples']} samples.\n"
    yield "| defect | reason in `data.json` |\n|---|---|"
    for number, (name, _, _) in enumerate(DEFECTS, 6):
        (reason,) = {
            entry["reason"].replace(f"{folder}/", "")
            for entry in account["skipped"]
            if Path(entry["path"]).stem == f"image_{number:03d}"
        }
        yield f"| {name} | {reason} |"


def speed(output: Path) -> Iterator[str]:
    """What loading, filling the cache and starting again cost."""
    done = subprocess.run(
        [sys.executable, "benchmarks/bench.py", "data"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    yield done.stdout.strip().removeprefix("## Images").strip()


SETTINGS = {  # of sd-scripts and its wrappers -> ours
    "img_folder": ["data.image_dir", "data.layout", "data.sources"],
    "caption_dropout_rate": ["data.captions.caption_dropout"],
    "caption_dropout_every_n_epochs": ["data.captions.caption_dropout_every_n_epochs"],
    "caption_tag_dropout_rate": ["data.captions.tag_dropout"],
    "num_workers": ["data.num_workers", "data.prefetch_factor"],
    "persistent_workers": ["data.persistent_workers"],
    "shuffle_captions": ["data.captions.shuffle_tags", "data.shuffle_data"],
    "keep_tokens": [
        "data.captions.keep_tags",
        "data.captions.tag_top_k",
        "data.captions.tag_min_count",
    ],
    "tag_occurrence_txt_file": ["data.captions.tag_occurrence_file", "data.captions.tag_balance"],
    "sort_tag_occurrence_alphabetically": ["data.captions.tag_occurrence_order"],
    "train_resolution": ["data.resolution"],
    "min_bucket_resolution": ["data.buckets.min_side"],
    "max_bucket_resolution": ["data.buckets.max_side", "data.image_filter.max_side"],
    "reg_img_folder": ["data.prior.image_dir", "data.prior.rotate"],
    "test_seed": ["seed", "validation.seed"],
    "prior_loss_weight": ["data.prior.weight"],
    "caption_extension": ["data.caption_extension"],
    "buckets": ["data.buckets.enabled", "data.buckets.sizes", "data.buckets.match"],
    "cache_latents": [
        "data.latent_cache.enabled",
        "data.latent_cache.posterior",
        "data.latent_cache.storage",
    ],
    "color_aug, flip_aug, random_crop": ["data.augmentations", "data.flip_probability"],
    "bucket_reso_steps": ["data.buckets.step"],
    "bucket_no_upscale": ["data.buckets.no_upscale"],
}


def settings(output: Path) -> Iterator[str]:
    """Which tests change one setting alone and assert what it must cause."""
    tests = registered_effects(ROOT / "tests" / "effects")
    chosen = {test for keys in SETTINGS.values() for key in keys for test in tests[key]}
    yield f"{len(chosen)} tests in `tests/effects`; a key without one fails the test suite.\n"
    yield "| sd-scripts | here | tests |\n|---|---|---|"
    for name, keys in SETTINGS.items():
        for key in keys:
            found = ", ".join(test.partition("::test_")[2].replace("_", " ") for test in tests[key])
            yield f"| {name} | `{key}` | {found} |"

"""Make the embedded demo: tokenizer, autoencoder, denoiser, image sets.

Run the stages in order, one CPU thread each. CREDITS.md states what they cost:

    python -m loralab.demo.pretrain tokenizer --packages node_modules --work outputs/pretrain
    python -m loralab.demo.pretrain vae       --packages node_modules --work outputs/pretrain
    python -m loralab.demo.pretrain decoder   --packages node_modules --work outputs/pretrain
    python -m loralab.demo.pretrain denoiser  --packages node_modules --work outputs/pretrain
    python -m loralab.demo.pretrain images    --packages node_modules --work outputs/pretrain
    python -m loralab.demo.pretrain icons     --packages node_modules --work outputs/pretrain
    python -m loralab.demo.pretrain export    --packages node_modules --work outputs/pretrain

`--packages` is a node_modules folder with the npm packages of CREDITS.md, which also states their
licences (Apache-2.0, CC-BY 4.0, MIT). Line icons need the Python package resvg_py. A stage that was
interrupted goes on from its checkpoint; every draw depends on `--seed` and the step alone.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from .captions import train_tokenizer
from .denoiser import STYLE_WEIGHTS, train_denoiser
from .icons import write_icons
from .images import write_images
from .sources import read_subjects, read_vocabulary
from .vae import refine_decoder, train_vae

TRAINED_STAGES: dict[str, Callable[..., None]] = {
    "vae": train_vae,
    "decoder": refine_decoder,
    "denoiser": train_denoiser,
}
NUM_STEPS = {"vae": 2200, "decoder": 1000, "denoiser": 7500}
BATCH_SIZES = {"vae": 16, "decoder": 16, "denoiser": 32}
STAGES = ("tokenizer", *TRAINED_STAGES, "images", "icons", "export")


def main(arguments: list[str] | None = None) -> None:
    """Run one stage."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    match options.stage:
        case "tokenizer":
            make_tokenizer(options.packages, options.work)
        case "images":
            write_images(options.packages, options.work / "images")
        case "icons":
            write_icons(options.packages, options.work / "icons")
        case "export":
            export(options.work, options.target)
        case stage:
            TRAINED_STAGES[stage](
                options.packages,
                options.work,
                num_steps=options.steps or NUM_STEPS[stage],
                batch_size=BATCH_SIZES[stage],
                seed=options.seed,
            )


def make_tokenizer(packages: Path, work: Path) -> None:
    """Train the tokenizer on all emoji words; those of the demo's captions count more."""
    subjects = read_subjects(packages)
    captions = [" ".join(subject.parts) for subject in subjects]
    styles = [" ".join(STYLE_WEIGHTS)]
    train_tokenizer([*read_vocabulary(packages), *captions * 8, *styles * 50], work / "tokenizer")


def export(work: Path, target: Path) -> None:
    """Copy the averaged pipeline and, if written, images and icons from `work` to the package."""
    for source, name in (("pipeline", "base"), ("images", "images"), ("icons", "icons")):
        if (work / source).is_dir():
            shutil.rmtree(target / name, ignore_errors=True)
            shutil.copytree(work / source, target / name)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loralab.demo.pretrain", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--packages", type=Path, required=True, help="a node_modules folder")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and results")
    parser.add_argument("--target", type=Path, default=Path(__file__).parent, help="for export")
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of the default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

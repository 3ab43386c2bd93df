"""Commands that must be refused, for the evidence."""

from __future__ import annotations

import shutil
from pathlib import Path

from loralab import demo

OWN = ("model=demo", "data=folder", "model.allow_demo=true", "data.buckets.step=16",
       "data.buckets.min_side=32", "data.buckets.max_side=128", "validation=none")  # fmt: skip


def prepare(output: Path) -> None:
    """Make folders that are wrong in one way each."""
    source = sorted(demo.images_dir("train").glob("*.png"))[0]
    for name in ("empty", "uncaptioned", "truncated"):
        (output / name).mkdir()
    shutil.copy(source, output / "uncaptioned" / "photo.png")
    (output / "truncated" / "photo.png").write_bytes(source.read_bytes()[:-600])
    (output / "truncated" / "photo.txt").write_text("a photo")
    shutil.copytree(demo.base_dir(), output / "no_tokenizer")
    shutil.rmtree(output / "no_tokenizer" / "tokenizer")


def wrong_commands(output: Path) -> list[tuple[str, ...]]:
    """Return the overrides of each wrong command."""
    return [
        ("adapter.rnk=4",),
        ("adapter.rank=eight",),
        ("adapter.rank=0",),
        ("adapter=lroa",),
        ("adaptr=lora",),
        ("experiment=smok",),
        ("+adapter.decompose=4",),
        ("++data.captions.sufix=x",),
        ("objective.weighting=minsnr",),
        ("adapter.unet.targets=attention",),
        ("model.prediction_type=vpred",),
        ("data.captions.tag_dropout=1.5", "data.batch_size=0", "seed=-1"),
        ("objective.min_timestep=500", "objective.max_timestep=400"),
        ("data.buckets.step=60",),
        ("trainer.max_epochs=3",),
        ("scheduler.warmup_steps=500",),
        ("ema=default", "ema.decay=2"),
        ("optimizer.lrr=1",),
        ("optimizer.lr=fast",),
        ("+optimizer.momentun=0.9",),
        ("optimizer._target_=os.system",),
        ("trainer.precision=16-mixed",),
        ("adapter.unet.targets=[to_qq,attention]",),
        ("model.path=no/such/base",),
        (f"model.path={output / 'no_tokenizer'}", "model.allow_demo=true"),
        (f"data.image_dir={output / 'nowhere'}", "model.allow_demo=true"),
        (*OWN, f"data.image_dir={output / 'empty'}"),
        (*OWN, f"data.image_dir={output / 'uncaptioned'}"),
        (*OWN, f"data.image_dir={output / 'truncated'}"),
        (f"data.image_dir={output / 'uncaptioned'}",),
        ("model=sd15", "data=folder"),
        ("resume=no/such.ckpt",),
    ]

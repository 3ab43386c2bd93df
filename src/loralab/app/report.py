"""What a person reads: the plan before, the outcome after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loralab.app.folders import RunFolder
from loralab.app.preflight import Survey
from loralab.app.toy_builds import num_devices
from loralab.config.records import RunConfig


def show_plan(config: RunConfig, survey: Survey, folder: RunFolder) -> None:
    """Print what will happen: data, steps, trainable parameters, where everything goes."""
    table = Table(title=f"Plan of {config.name}", show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # paths are shown whole
    for label, text in plan_rows(config, survey, folder):
        table.add_row(label, text)
    Console(width=100).print(table)


def plan_rows(config: RunConfig, survey: Survey, folder: RunFolder) -> list[tuple[str, str]]:
    """Return the plan as labels and texts."""
    items, validation = survey.items, survey.validation_items
    images = len({item.record.path for item in items})
    accumulation = config.trainer.get("accumulate_grad_batches", 1)
    devices = num_devices(config)
    window = config.data.batch_size * accumulation * devices
    rows = [
        ("base", f"{config.model.path} ({survey.facts.family}, {_prediction(config, survey)})"),
        ("images", f"{images} × {config.data.repeats} repeats, {len(validation)} held out"),
        ("buckets (width × height)", _buckets(survey)),
        (
            "batch",
            f"{config.data.batch_size} images × {accumulation} accumulated × {devices} device(s) "
            f"= {window} a step",
        ),
        (
            "steps",
            f"{survey.steps_per_epoch} an epoch, {survey.total_steps} in all "
            f"({survey.total_steps / survey.steps_per_epoch:.1f} epochs), "
            f"{config.scheduler.kind.name} schedule, {survey.warmup_steps} of warm-up",
        ),
    ]
    for name, part in survey.parts.items():
        text = (
            f"{part.num_parameters:,} trainable parameters in {part.num_modules} layers, "
            f"rank {part.spec.rank}, alpha {part.spec.alpha:g}, rate {part.learning_rate:g}"
        )
        rows.append((name, text))
    rows += [
        ("precision", str(config.trainer.get("precision", "32-true"))),
        ("run folder", str(folder.path)),
    ]
    if folder.checkpoint is not None:
        rows.append(("continues from", str(folder.checkpoint)))
    if config.data.latent_cache.enabled:
        rows.append(("latent cache", config.data.latent_cache.directory))
    return rows


def show_cache(done: int, total: int) -> None:
    """Print how far the latent cache is."""
    if total == 0:
        print("latent cache: complete", flush=True)
    elif done == total or done % max(1, total // 4) == 0:
        print(f"latent cache: {done}/{total} images encoded", flush=True)


def show_outcome(
    config: RunConfig, folder: Path, files: Sequence[Path], figures: dict[str, float]
) -> None:
    """Print what was made, what it gained, and three things to do next."""
    print(f"\nDone. The run is in {folder}")
    for path in files:
        print(f"  {path.relative_to(folder)}  ({path.stat().st_size / 2**20:.1f} MiB)")
    if (folder / "preview.png").is_file():
        print("  preview.png  (base | LoRA | training images)")
    if "val/loss" in figures:
        ours, base = figures["val/loss"], figures["val/loss_base"]
        change = (1 - ours / base) * 100
        word = "lower" if change >= 0 else "higher"
        print(f"Loss on held-out images: {ours:.4f}, base {base:.4f} ({abs(change):.0f} % {word})")
    print("\nNext:")
    print(f"  look at it     tensorboard --logdir {config.output_dir}")
    print("  compare rates  python train.py -m optimizer.lr=3e-4,1e-3,3e-3")
    kohya = [path for path in files if ".diffusers." not in path.name]
    other = [path for path in files if ".diffusers." in path.name]
    if other:
        print(f'  use it         pipeline.load_lora_weights("{other[0]}")  in diffusers')
    if kohya:
        name = kohya[0].name
        print(f"                 copy {name} to models/Lora (A1111) or models/loras (ComfyUI)")


def _prediction(config: RunConfig, survey: Survey) -> str:
    chosen = config.model.prediction_type
    return chosen.name if chosen is not None else survey.facts.prediction_type


def _buckets(survey: Survey) -> str:
    counts = Counter(item.bucket for item in survey.items)
    return ", ".join(
        f"{bucket.width}×{bucket.height}: {count}" for bucket, count in sorted(counts.items())
    )

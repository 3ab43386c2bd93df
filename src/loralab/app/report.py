"""What a person reads: the plan before, the outcome after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from loralab.app.captions import caption_rows
from loralab.app.folders import RunFolder
from loralab.app.images import count_shown
from loralab.app.optimizers import describe_rate, planned_groups
from loralab.app.preflight import Survey
from loralab.app.recipes import recipe_arguments
from loralab.app.result_metrics import describe_result_metrics, plan_of_result_metrics
from loralab.app.schedule import CHART_FILE, describe_schedule
from loralab.app.sizes import describe_phases, resolution_phases
from loralab.app.toy_builds import num_devices
from loralab.config.choices import AdapterDtype
from loralab.config.optimizer_rules import finds_its_rate
from loralab.config.records import RunConfig
from loralab.data.account import Account
from loralab.training.validation import describe_validation


def show_plan(config: RunConfig, survey: Survey, folder: RunFolder) -> None:
    """Print what will happen: data, steps, trainable parameters, where everything goes."""
    table = Table(title=f"Plan of {config.name}", show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # paths are shown whole
    for label, text in plan_rows(config, survey, folder):
        table.add_row(label, text)
    console = Console(width=100)
    console.print(table)
    console.print(_groups(config, survey))


def _groups(config: RunConfig, survey: Survey) -> Table:
    """Return what the optimizer makes of the parameters, one row a group."""
    title = "Parameter groups; TensorBoard has the rate of each as learning_rate/NAME"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for heading in ("name", "part", "what"):
        table.add_column(heading, overflow="fold")
    for heading in ("tensors", "parameters", "rate", "decay"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in planned_groups(config, survey.parts):
        decay = "none" if group.weight_decay is None else f"{group.weight_decay:g}"
        table.add_row(
            group.name,
            group.part,
            group.role,
            f"{group.num_tensors:,}",
            f"{group.num_parameters:,}",
            describe_rate(config, group),
            decay,
        )
    return table


def plan_rows(config: RunConfig, survey: Survey, folder: RunFolder) -> list[tuple[str, str]]:
    """Return the plan as labels and texts."""
    validation = survey.validation_items
    accumulation = config.trainer.get("accumulate_grad_batches", 1)
    devices = num_devices(config)
    window = config.data.batch_size * accumulation * devices
    rows = [
        ("base", f"{config.model.path} ({survey.facts.family}, {_prediction(config, survey)})"),
        ("images", f"{_images(survey)}, {len(validation)} held out"),
        *_left_out(survey),
        *caption_rows(survey.items),
        *([("long captions", survey.caption_note)] if survey.caption_note else []),
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
    phases = resolution_phases(config, survey.total_steps, survey.steps_per_epoch)
    if phases:
        rows.append(("sizes", describe_phases(phases, config.data.resolution)))
    rows.append(("rate", describe_schedule(config, survey)))
    rows.append(("optimizer", _optimizer(config)))
    if config.ema.enabled:
        uses = ", ".join(use.name for use in config.ema.use_for)
        rows.append(("average", f"decay {config.ema.decay:g}, taken for {uses}"))
    for name, part in survey.parts.items():
        rows.append((name, part.describe()))
    rows += plan_of_result_metrics(config, survey)
    rows += [
        ("precision", _precision(config)),
        ("run folder", str(folder.path)),
    ]
    if folder.checkpoint is not None:
        rows.append(("continues from", str(folder.checkpoint)))
    if config.data.latent_cache.enabled:
        rows.append(("latent cache", config.data.latent_cache.directory))
    return rows


def _precision(config: RunConfig) -> str:
    text = str(config.trainer.get("precision", "32-true"))
    if config.adapter.weight_dtype is not AdapterDtype.fp32:
        text += f", adapter weights in {config.adapter.weight_dtype.name}, rounded by chance"
    return text


def _optimizer(config: RunConfig) -> str:
    """Return the class, its arguments, and what becomes of the rate."""
    target = str(config.optimizer["_target_"])
    given = recipe_arguments(config.optimizer)
    text = ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)
    if finds_its_rate(config):
        text += "; it finds its rate"
    return f"{target}: {text}"


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
    print(f"  {CHART_FILE}  (the learning rate)")
    if (folder / "preview.png").is_file():
        print("  preview.png  (base | LoRA | training images)")
    if (folder / "evaluation.png").is_file():
        print("  evaluation.png  (held-out subjects: base, LoRA, real pictures)")
    if "val/loss" in figures:
        print(f"Loss on held-out images: {describe_validation(figures)}")
    if config.validation.keep_best:
        loss, step = figures["val/best_loss"], figures["val/best_step"]
        print(f"Best: {loss:.4f} at step {step:.0f}, the files that end in -best")
    if "quality/content_top1" in figures:
        show_quality(figures)
    for line in describe_result_metrics(figures):
        print(line)
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


def show_quality(figures: dict[str, float]) -> None:
    """Print in two lines what the eye sees in drawings of held-out subjects."""
    for text, name in (("recognised", "content_top1"), ("in the new style", "style_share")):
        ours, base = figures[f"quality/{name}"], figures[f"quality/{name}_base"]
        print(f"Drawings of held-out subjects {text}: {ours:.0%}, base {base:.0%}")


def _images(survey: Survey) -> str:
    """Return how many images and class images there are, and how many of them an epoch shows."""
    texts = []
    for is_prior, word in ((False, "images"), (True, "class images")):
        paths = {i.record.path for i in survey.items if i.source.is_prior == is_prior}
        if paths:
            shown = count_shown(survey.items, survey.rotation, is_prior=is_prior)
            texts.append(f"{len(paths)} {word}, {shown} an epoch")
    return "; ".join(texts)


def show_account(account: Account) -> None:
    """Print in two lines what became of the images, and the receipt of the last epoch."""
    figures = account.figures()
    kinds = ("seen", "repeated", "fillers", "not_reached", "skipped", "failed")
    counts = ", ".join(f"{figures[kind]} {kind.replace('_', ' ')}" for kind in kinds)
    print(f"\nImages: {counts}; {figures['samples']} samples in {figures['micro_batches']} batches")
    last = account.receipts[-1]
    print(
        f"Order:  receipt {last.sha256[:16]} of epoch {last.epoch} ({last.micro_batches} batches); "
        "all epochs and images are in data.json"
    )


def _left_out(survey: Survey) -> list[tuple[str, str]]:
    """Return what the plan says about images that are left out, or stay although they are odd."""
    rows = []
    for label, problems in (("left out", survey.skipped), ("odd images", survey.odd)):
        if problems:
            count = len({problem.key for problem in problems})
            rows.append((label, f"{count} images; the first: {problems[0]}"))
    return rows


def _prediction(config: RunConfig, survey: Survey) -> str:
    chosen = config.model.prediction_type
    return chosen.name if chosen is not None else survey.facts.prediction_type


def _buckets(survey: Survey) -> str:
    counts = Counter(item.bucket for item in survey.items)
    return ", ".join(
        f"{bucket.width}×{bucket.height}: {count}" for bucket, count in sorted(counts.items())
    )

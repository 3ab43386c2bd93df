"""What the eye sees in a run on the demo: at the run's end, and by `loralab evaluate-demo`."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from loralab.adapters.export import parse_adapter
from loralab.adapters.inject import adapter_disabled
from loralab.adapters.merged import merged
from loralab.app.demo_run import read_run
from loralab.app.objective import build_schedule, sampling_config
from loralab.config.parse import to_plain
from loralab.config.records import RunConfig
from loralab.demo.evaluation.procedure import OWN_WORD, STYLE, TRIGGER, Evaluation, evaluate
from loralab.demo.evaluation.scores import Score
from loralab.errors import UserError
from loralab.files import replacing, storage_problem, write_text
from loralab.models.family import ModelFamily
from loralab.models.registry import load_family
from loralab.training.outcome import log_outcome

if TYPE_CHECKING:
    from loralab.app.build import Job

QUALITY_METRICS = ("quality/content_top1", "quality/content_top5", "quality/style_share")
FIGURES_FILE, SHEET_FILE = "evaluation.json", "evaluation.png"
EXAMPLE = "cat, animal"


def measure_quality(job: Job, config: RunConfig, folder: Path) -> dict[str, float]:
    """Judge drawings of the trained model; write the files and log figures and picture."""
    with job.module.weights_for("export"):
        evaluation = _evaluate(
            job.module.family,
            config,
            as_base=partial(adapter_disabled, job.module.adapted.values()),
            as_lora=nullcontext,
            rounds=config.demo_quality,
            cache=Path(config.output_dir),
        )
    _write(evaluation, folder)
    figures = evaluation.figures()
    log_outcome(job.trainer, figures, {"quality/drawings": evaluation.picture()})
    return figures


def evaluate_run(folder: Path, *, rounds: int) -> None:
    """Judge the exported adapter of a run, print the table and write the files.

    Raises:
        UserError: The folder is no run of a style on the demo base, or has no adapter yet.
    """
    config, adapter = read_run(folder)
    torch.set_num_threads(config.cpu_threads or torch.get_num_threads())
    family = load_family(config.model.family.name, config.model.path,
                         clip_skip=config.model.clip_skip)  # fmt: skip
    schedule = build_schedule(config, family.schedule_config)
    family.schedule_config = sampling_config(config, schedule, family.schedule_config)
    evaluation = _evaluate(
        family,
        config,
        as_base=nullcontext,
        as_lora=partial(merged, parse_adapter(adapter, family.parts), family.parts),
        rounds=rounds,
        cache=_outputs(folder, config),
    )
    _write(evaluation, folder)
    _show(evaluation, folder, adapter)


def _evaluate(family: ModelFamily, config: RunConfig, *, cache: Path, **options: Any) -> Evaluation:
    folder = cache / "demo-drawings"
    try:
        return evaluate(
            family,
            base_path=Path(config.model.path),
            base_options=to_plain(config)["model"],
            cache=folder,
            report=partial(print, flush=True),
            **options,
        )
    except OSError as error:
        raise UserError(storage_problem(folder, error)) from error


def _outputs(folder: Path, config: RunConfig) -> Path:
    """Return the folder of all runs, wherever the command is run from."""
    name, parents = Path(config.output_dir).name, folder.resolve().parents
    return next((parent for parent in parents if parent.name == name), parents[0])


def _write(evaluation: Evaluation, folder: Path) -> None:
    text = json.dumps(evaluation.as_plain(), indent=2, ensure_ascii=False)
    write_text(folder / FIGURES_FILE, text + "\n")
    path = folder / SHEET_FILE
    try:
        with replacing(path) as part:
            evaluation.sheet.save(part, format="PNG")
    except OSError as error:
        raise UserError(storage_problem(path, error)) from error


def _show(evaluation: Evaluation, folder: Path, adapter: Path) -> None:
    count, rounds = len(evaluation.subjects), evaluation.rounds
    console = Console(width=100, highlight=False)
    console.print()
    console.print(_table(evaluation))
    taken = {part: f"{seconds:.0f} s" for part, seconds in evaluation.seconds.items()}
    for line in (
        f"Drawn: {count} subjects that the LoRA never saw, {rounds} × each, with {adapter.name}.",
        f"Subject: of {evaluation.num_candidates} subjects, whose real icon looks most like the "
        "drawing? Colour does not count.",
        "Style: told by a classifier fitted on real icons; of icons it has not seen it tells "
        f"{evaluation.style_accuracy:.0%} right.",
        f"Time: base {taken['base']} (kept for other runs), LoRA {taken['lora']}.",
        f"Look at {folder / SHEET_FILE}; all figures are in {FIGURES_FILE} beside it.",
    ):
        console.print(line)


def _table(evaluation: Evaluation) -> Table:
    table = Table(title="What the drawings show", title_justify="left", box=SIMPLE)
    table.add_column("asked for", vertical="bottom")
    for heading in ("right\nsubject", "among the\n5 nearest", f"in the new style\n({STYLE})"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows: list[tuple[str, Score]] = [
        (f"base  “{OWN_WORD}, {EXAMPLE}”", evaluation.base),
        (f"base  “{TRIGGER}, {EXAMPLE}”", evaluation.base_with_trigger),
        (f"LoRA  “{TRIGGER}, {EXAMPLE}”", evaluation.lora),
        (f"real {STYLE}s: the best possible", evaluation.real),
        ("chance", evaluation.chance),
    ]
    for label, score in rows:
        shares = (score.content_top1, score.content_top5, score.styles[STYLE])
        style = "bold" if score is evaluation.lora else ""
        table.add_row(label, *map(_percent, shares), style=style)
    return table


def _percent(share: float) -> str:
    return f"{share:.1%}" if 0 < share < 0.02 else f"{share:.0%}"

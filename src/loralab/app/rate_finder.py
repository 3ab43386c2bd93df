"""`loralab lr-find`: a range test of the rate with everything else as the run would have it."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from loralab.app.build import build_datamodule, build_family, build_module, build_trainer
from loralab.app.export import AdapterWriter
from loralab.app.folders import RunFolder
from loralab.app.held_out import choose_probe
from loralab.app.preflight import Survey, preflight
from loralab.config.optimizer_rules import finds_its_rate, optimizer_name
from loralab.config.records import (
    EmaRecord,
    LoggerRecord,
    PreviewRecord,
    ResultMetricsRecord,
    RunConfig,
)
from loralab.config.training_records import SchedulerRecord
from loralab.data.account import Account
from loralab.data.line_chart import save_line_chart
from loralab.errors import ConfigError, Problem
from loralab.training.callbacks.range_test import RangeTest, rising_rates, suggest_rate

SEED, STRATA = 0, 4  # of the measured noise


def find_rate(
    config: RunConfig,
    *,
    low: float,
    high: float,
    steps: int,
    images: int,
    chart: Path | None,
) -> float | None:
    """Run the test, print the curve and the suggestion, save the chart; return the suggestion.

    Args:
        config: The run whose rate is looked for; its own rate only sets those of the parts.
        low: First rate.
        high: Last rate, reached unless the loss has blown up before.
        steps: Optimizer steps.
        images: Images measured after every step, held-out ones if there are any.
        chart: PNG to write; None is `lr-find-NAME.png` in the folder of all runs.

    Raises:
        ConfigError: The run would be refused, or has no rate to be found.
    """
    if problems := _problems(config, low, high):
        raise ConfigError(*problems)
    trial = _trial(config, steps)
    chart = chart or Path(config.output_dir) / f"lr-find-{config.name}.png"
    torch.set_num_threads(config.cpu_threads or torch.get_num_threads())
    started = time.perf_counter()
    rates = rising_rates(low, high, steps)
    with tempfile.TemporaryDirectory(prefix="loralab-lr-find-") as place:
        losses = _losses(trial, RunFolder(Path(place) / "run"), rates, images)
    found = suggest_rate(rates, losses)
    _draw(chart, rates, losses, found)
    _tell(rates, losses, found, chart, time.perf_counter() - started)
    return found


def _problems(config: RunConfig, low: float, high: float) -> list[Problem]:
    problems = []
    if finds_its_rate(config):
        text = (
            f"optimizer._target_ is {config.optimizer.get('_target_')}, and "
            f"{optimizer_name(config)} finds its rate itself; there is nothing to test. Choose "
            "another one, such as optimizer=adamw."
        )
        problems.append(Problem("optimizer._target_", text))
    elif not config.optimizer.get("lr"):
        text = "optimizer.lr is 0; give it any number above 0, from which parts take theirs."
        problems.append(Problem("optimizer.lr", text))
    if not 0 < low < high:
        text = f"--low is {low:g} and --high is {high:g}; low must be above 0 and below high."
        problems.append(Problem("--low", text))
    return problems


def _trial(config: RunConfig, steps: int) -> RunConfig:
    """Return the run without what lies beside its steps."""
    return dataclasses.replace(
        config,
        scheduler=SchedulerRecord(),
        ema=EmaRecord(),
        preview=PreviewRecord(),
        result_metrics=ResultMetricsRecord(),
        logger=LoggerRecord(),
        callbacks={},
        demo_quality=0,
        resume=None,
        validation=dataclasses.replace(
            config.validation, patience=None, keep_best=False, train_probe=False
        ),
        trainer={**config.trainer, "max_steps": steps, "max_epochs": None},
    )


def _losses(
    config: RunConfig, folder: RunFolder, rates: Sequence[float], images: int
) -> list[float]:
    """Train with rising rates and return the loss before the first step and after each."""
    survey = _with_few_measured(preflight(config, folder), images)
    module = build_module(config, survey, build_family(config, survey))
    shared = float(config.optimizer["lr"])
    module.learning_rates = {
        name: rates[0] * part.learning_rate / shared for name, part in survey.parts.items()
    }
    module.lr_multiplier = lambda step: rates[min(step, len(rates) - 1)] / rates[0]
    folder.path.mkdir()
    account = Account(survey.items, held_out=survey.validation_items)
    writer = AdapterWriter(config, survey, module, folder.path, account)
    trainer = build_trainer(config, survey, folder, writer)
    test = RangeTest(seed=SEED, strata=STRATA)
    trainer.callbacks.append(test)  # type: ignore[attr-defined]
    trainer.fit(module, build_datamodule(config, survey, module.family))
    return test.losses


def _with_few_measured(survey: Survey, images: int) -> Survey:
    """Return the survey with so many measured images, trained ones where none are held out."""
    held_out = sorted(survey.validation_items, key=lambda item: item.key)
    chosen = tuple(held_out[:images]) or choose_probe(survey.items, images)
    return dataclasses.replace(survey, validation_items=chosen)


def _draw(
    chart: Path, rates: Sequence[float], losses: Sequence[float], found: float | None
) -> None:
    points = [
        (math.log10(rate), loss)
        for rate, loss in zip(rates, losses[1:], strict=False)
        if math.isfinite(loss)
    ]
    lines = {"loss on fixed images and noise": points}
    if found is not None:
        top = max(loss for _, loss in points)
        lines[f"suggestion {found:.1e}"] = [(math.log10(found), 0.0), (math.log10(found), top)]
    chart.parent.mkdir(parents=True, exist_ok=True)
    save_line_chart(chart, lines, title="range test", x_label="optimizer.lr, as a power of ten")


def _tell(
    rates: Sequence[float],
    losses: Sequence[float],
    found: float | None,
    chart: Path,
    seconds: float,
) -> None:
    print(f"{len(losses) - 1} steps in {seconds:.0f} s; the curve is in {chart}")
    print(f"Loss at the start {losses[0]:.4f}, lowest {min(losses):.4f} "
          f"at {rates[max(0, losses.index(min(losses)) - 1)]:.1e}")  # fmt: skip
    if found is None:
        print("The loss never falls: test higher rates with --high, or look at the data.")
        return
    print(f"The loss falls fastest at {found:.1e}. To take it:")
    print(f"  python train.py ... optimizer.lr={found:.1e}")

"""What rides along: figures, lines, pictures, files, and the way a run is stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins import MixedPrecision

from loralab.data.dataset import Item
from loralab.errors import UserError
from loralab.training.callbacks.checkpoint import Checkpoint, checkpoints
from loralab.training.callbacks.export import Export
from loralab.training.callbacks.gradient_noise import GradientNoise
from loralab.training.callbacks.preview import Preview, PreviewOptions
from loralab.training.callbacks.progress import Progress, clock
from loralab.training.callbacks.statistics import Statistics

Make = Callable[..., Any]
PREVIEW = PreviewOptions(
    prompts=("blue circle", "red square"),
    negative_prompt="",
    num_steps=2,
    guidance_scale=3.0,
    seed=0,
    every_n_steps=2,
    size=(32, 32),
)


class Memory(Logger):
    """A logger that keeps what it is given."""

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.entries.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Keep nothing."""


class Witness(L.Callback):
    """Keeps each micro-batch's share of the loss and each step's gradient norm."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self.norms: list[float] = []
        self.errors: list[tuple[int, float]] = []
        self.images = 0

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, i: int
    ) -> None:
        self.shares.append(float(module.last.loss))
        self.images += len(batch["keys"])
        pairs = zip(module.last.sample.timesteps.tolist(), module.last.error.tolist(), strict=True)
        self.errors += [pair for pair, counted in zip(pairs, module.last.counted, strict=True)
                        if counted]  # fmt: skip

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        self.norms.append(float(torch.cat([g.flatten() for g in grads]).norm()))


@pytest.fixture
def fit(make_module: Make, make_data: Make, make_trainer: Make, items: list[Item]) -> Make:
    """Train and return the trainer; seven micro-batches an epoch."""

    def run(*callbacks: L.Callback, steps: int = 4, accumulation: int = 1, **options: Any) -> Any:
        module = options.pop("module", None) or make_module(
            optimizer=torch.optim.AdamW, rate=1e-3, dropout=0.2
        )
        data = make_data(items, accumulation=accumulation)
        trainer = make_trainer(
            max_steps=steps,
            accumulate_grad_batches=accumulation,
            callbacks=list(callbacks),
            **options,
        )
        trainer.fit(module, data)
        return trainer

    return run


def test_logged_loss_is_the_mean_of_the_losses_of_the_windows(fit: Make) -> None:
    logger, witness = Memory(), Witness()
    fit(Statistics(), witness, steps=6, accumulation=2, logger=logger, log_every_n_steps=3)
    windows = [sum(witness.shares[n : n + 2]) for n in range(0, 12, 2)]
    assert [step for step, _ in logger.entries] == [3, 6]
    for (_, figures), start in zip(logger.entries, (0, 3), strict=True):
        expected = sum(windows[start : start + 3]) / 3
        assert figures["train/loss"] == pytest.approx(expected, rel=1e-6)
    assert logger.entries[0][1]["train/gradient_norm"] == pytest.approx(witness.norms[2], rel=1e-5)
    assert logger.entries[1][1]["learning_rate/unet"] == 1e-3


def test_the_gradient_norm_of_a_fused_optimizer_is_free_of_the_loss_scale(
    fit: Make, make_module: Make
) -> None:
    norms, noises = [], []
    for fused in (False, True):  # torch scales down before the step, or in it
        logger = Memory()
        fit(
            Statistics(), GradientNoise(window=2), steps=2, logger=logger, log_every_n_steps=1,
            module=make_module(optimizer=partial(torch.optim.AdamW, fused=fused), rate=1e-3),
            plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", 1024.0))],
        )  # fmt: skip
        figures = [figures for _, figures in logger.entries]
        norms.append([f["train/gradient_norm"] for f in figures if "train/gradient_norm" in f])
        noises.append([f["gradient/signal"] for f in figures if "gradient/signal" in f])
    assert len(norms[0]) == 2
    assert len(noises[0]) == 1
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert noises[0] == pytest.approx(noises[1], rel=1e-3)


@pytest.mark.parametrize(("every", "accumulation"), [(1, 1), (3, 2)])
def test_no_number_before_anything_was_learnt_is_not_laid_to_the_rate(
    fit: Make, make_module: Make, every: int, accumulation: int
) -> None:
    module = make_module(optimizer=torch.optim.AdamW, rate=1e-3)
    with torch.no_grad():
        next(p for p in module.denoiser.parameters() if not p.requires_grad).fill_(torch.nan)
    with pytest.raises(UserError) as end:
        fit(Statistics(), module=module, accumulation=accumulation, log_every_n_steps=every)
    (problem,) = end.value.problems
    assert problem.key == "model.path"
    assert problem.message.startswith(f"train/loss is nan at step {every}, and was no number")
    assert "(images: " in problem.message
    assert "image_0" in problem.message
    assert "model.weight_dtype=fp32" in problem.message
    assert "optimizer.lr" not in problem.message


@pytest.mark.parametrize("every", [1, 4])
def test_a_loss_that_training_has_spoilt_is_laid_to_the_rate(
    fit: Make, make_module: Make, every: int
) -> None:
    module = make_module(optimizer=torch.optim.SGD, rate=1e38)
    with pytest.raises(UserError, match=r"^train/loss is (nan|inf) at step .* lower optimizer\.lr"):
        fit(Statistics(), module=module, steps=8, log_every_n_steps=every)


def test_loss_by_timestep_is_the_mean_error_of_each_quarter(fit: Make) -> None:
    logger, witness = Memory(), Witness()
    fit(Statistics(), witness, steps=6, logger=logger, log_every_n_steps=6)
    ((_, figures),) = logger.entries
    for low in (0, 250, 500, 750):
        errors = [error for step, error in witness.errors if low <= step < low + 250]
        name = f"train/loss_by_timestep/{low:03d}-{low + 249:03d}"
        if errors:
            assert figures[name] == pytest.approx(sum(errors) / len(errors), rel=1e-6)
        else:
            assert name not in figures


def test_images_per_second_counts_images_and_passes_only(fit: Make) -> None:
    logger, witness = Memory(), Witness()
    started = time.perf_counter()
    fit(Statistics(), witness, steps=5, logger=logger, log_every_n_steps=5)
    seconds = time.perf_counter() - started
    ((_, figures),) = logger.entries
    assert figures["speed/images_per_second"] > witness.images / seconds
    assert figures["memory/gib"] > 0.05


def test_progress_prints_plain_lines_at_its_cadence(
    fit: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(Statistics(), Progress(every_n_steps=2), steps=5, logger=Memory(), log_every_n_steps=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 2/5", "step 4/5", "step 5/5"]
    assert all("loss " in line and "images/s" in line and "left" in line for line in lines)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3725, "1:02:05")])
def test_durations_are_read_as_on_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_previews_disturb_neither_training_nor_the_base_picture(fit: Make, tmp_path: Path) -> None:
    with_pictures, without = Witness(), Witness()
    preview = Preview(PREVIEW, examples=[torch.zeros(3, 32, 32)])
    trainer = fit(preview, with_pictures, steps=5)
    fit(without, steps=5)

    assert with_pictures.shares == without.shares
    assert with_pictures.norms == without.norms
    module = trainer.lightning_module
    assert all(m.training for m in module.adapted["unet"].modules())
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == [
        "step-000000.png",
        "step-000002.png",
        "step-000004.png",
        "step-000005.png",
    ]
    assert (tmp_path / "preview.png").is_file()
    again = Preview(PREVIEW)
    again.on_train_start(trainer, module)
    assert torch.equal(again.base, preview.base)
    assert not torch.equal(again._draw(module), preview.base)


def test_checkpoints_come_at_the_cadence_and_at_the_end_and_the_newest_stay(
    fit: Make, tmp_path: Path
) -> None:
    fit(Checkpoint(every_n_steps=2, keep_last=2), steps=7, accumulation=2)
    names = [path.name for path in checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-000006.ckpt", "step-000007.ckpt"]


def test_checkpoints_are_ordered_by_number_and_nothing_else(tmp_path: Path) -> None:
    for name in ("step-999999.ckpt", "step-1000000.ckpt", "step-9.ckpt", "step-x.ckpt", "a.ckpt"):
        (tmp_path / name).touch()
    names = [path.name for path in checkpoints(tmp_path)]
    assert names == ["step-9.ckpt", "step-999999.ckpt", "step-1000000.ckpt"]


class Interrupter(L.Callback):
    """Sends this process an interrupt after the first micro-batch of the second window."""

    def __init__(self, times: int = 1) -> None:
        self.times = times

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, i: int
    ) -> None:
        if i == 2:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def test_interrupt_saves_at_the_end_of_the_step_and_stops(fit: Make, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    trainer = fit(Interrupter(), Checkpoint(every_n_steps=100), steps=50, accumulation=2)
    assert trainer.global_step == 2
    (path,) = checkpoints(tmp_path / "checkpoints")
    content = torch.load(path, weights_only=True)
    assert content["global_step"] == 2
    loader = content["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert loader == [{"epoch": 0, "position": 4}]
    assert signal.getsignal(signal.SIGINT) is before


def test_second_interrupt_stops_at_once(fit: Make, tmp_path: Path) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(Interrupter(times=2), Checkpoint(), steps=50, accumulation=2)
    assert checkpoints(tmp_path / "checkpoints") == []


def test_export_names_files_by_step_and_leaves_the_end_to_the_last_file(fit: Make) -> None:
    written: list[tuple[str, int]] = []
    export = Export(
        lambda ending, step: written.append((ending, step)), every_n_steps=2, every_n_epochs=None
    )
    fit(export, steps=6, accumulation=2)
    assert written == [("-step000002", 2), ("-step000004", 4)]


def test_export_counts_epochs_from_one(fit: Make) -> None:
    written: list[tuple[str, int]] = []
    export = Export(
        lambda ending, step: written.append((ending, step)), every_n_steps=None, every_n_epochs=1
    )
    fit(export, steps=15)
    assert written == [("-epoch0001", 7), ("-epoch0002", 14)]


def test_csv_logger_takes_all_figures(fit: Make, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="csv")
    fit(Statistics(), steps=4, logger=logger, log_every_n_steps=2)
    text = (tmp_path / "csv" / "metrics.csv").read_text()
    assert "train/loss" in text.splitlines()[0]
    assert len(text.splitlines()) == 3

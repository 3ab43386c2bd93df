"""Runs of the whole program at tiny size, in this process, from overrides of `conf/train.yaml`.

Every run starts from the same small configuration, so a test shows the one field that it changes.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from loralab.app.build import Job
from loralab.app.folders import RunFolder, choose_folder
from loralab.app.lifecycle import start, train
from loralab.app.logs import close_log, quiet_libraries
from loralab.app.preflight import Survey, preflight
from loralab.app.run import run
from loralab.config.parse import parse_config
from loralab.config.records import RunConfig
from loralab.config.store import conf_dir, register
from loralab.data.batch import Batch

NUM_IMAGES = 12
NUM_STEPS = 3
BATCH_SIZE = 2


@dataclass(frozen=True)
class TinyRun:
    """A finished run: what it returned, printed and left in its folder."""

    value: float | None
    stdout: str
    folder: Path

    @cached_property
    def config(self) -> DictConfig:
        """The configuration that the run stored."""
        config = OmegaConf.load(self.folder / "config.yaml")
        assert isinstance(config, DictConfig)
        return config

    @cached_property
    def state(self) -> dict[str, Any]:
        """The content of `run.json`."""
        state: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        return state

    @property
    def metrics(self) -> dict[str, float]:
        """The figures at the end."""
        metrics: dict[str, float] = self.state["metrics"]
        return metrics

    @property
    def files(self) -> list[str]:
        """Names of the exported adapter files."""
        files = (self.folder / "adapters").iterdir()
        return sorted(path.name for path in files if path.suffix not in (".json", ".md"))

    @property
    def checkpoints(self) -> list[str]:
        """Names of the checkpoints."""
        return sorted(path.name for path in (self.folder / "checkpoints").glob("*"))

    @cached_property
    def adapter(self) -> dict[str, Tensor]:
        """The tensors of the last exported file, in kohya's names."""
        (file,) = (self.folder / "adapters").glob(f"{self.config.name}.safetensors")
        return load_file(file)

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The metadata of the last exported file."""
        (file,) = (self.folder / "adapters").glob(f"{self.config.name}.safetensors")
        with safe_open(file, framework="pt") as content:
            return dict(content.metadata())

    def checkpoint(self, step: int) -> dict[str, Any]:
        """Return the content of a checkpoint."""
        path = self.folder / "checkpoints" / f"step-{step:06d}.ckpt"
        content: dict[str, Any] = torch.load(path, weights_only=True)
        return content

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of `metrics.csv`, empty cells left out."""
        with (self.folder / "metrics.csv").open(encoding="utf-8") as file:
            return [
                {key: cell for key, cell in row.items() if cell} for row in csv.DictReader(file)
            ]

    def column(self, name: str) -> list[float]:
        """Return the logged values of one figure, in order."""
        return [float(row[name]) for row in self.rows() if name in row]


@dataclass(frozen=True)
class TinyJob:
    """Everything of a run short of training."""

    config: RunConfig
    folder: RunFolder
    survey: Survey
    job: Job

    def fit(self) -> None:
        """Train, in silence."""
        with contextlib.redirect_stdout(io.StringIO()):
            train(self.job, self.folder)

    def epoch(self, number: int = 0) -> list[Batch]:
        """Return the training batches of an epoch, as training would see them."""
        self.job.datamodule.prepare_data()
        loader = self.job.datamodule.train_dataloader()
        loader.batch_sampler.set_epoch(number)  # type: ignore[attr-defined]
        return list(loader)

    def captions(self, number: int = 0) -> list[str]:
        """Return the captions of an epoch in the order of the images."""
        pairs = [
            (index, caption)
            for batch in self.epoch(number)
            for index, caption in zip(batch["index"].tolist(), batch["captions"], strict=True)
        ]
        assert len(pairs) == len(self.survey.items)
        return [caption for _, caption in sorted(pairs)]


class Tiny:
    """Composes, checks, builds and runs the tiny configuration with overrides."""

    def __init__(self, root: Path, *, base: Path, images: Path) -> None:
        """Keep the places; runs of one root share their latent cache."""
        self.root = root
        self.base = base
        self.images = images
        self._numbers = itertools.count()
        self._finished: dict[tuple[str, ...], TinyRun] = {}

    def compose(self, *overrides: str) -> DictConfig:
        """Return the composed configuration; later overrides win."""
        register()
        given = {override.split("=")[0].lstrip("+~") for override in overrides}
        base = [line for line in self._base() if line.split("=")[0] not in given]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose("train", overrides=[*base, *overrides])

    def config(self, *overrides: str) -> RunConfig:
        """Return the parsed configuration."""
        return parse_config(self.compose(*overrides))

    def survey(self, *overrides: str) -> Survey:
        """Return what preflight finds."""
        config = self.config(*overrides)
        return preflight(config, choose_folder(config))

    def build(self, *overrides: str) -> TinyJob:
        """Return the objects of a run, not yet trained."""
        config = self.config(*overrides)
        folder = choose_folder(config)
        quiet_libraries()
        survey = preflight(config, folder)
        job = start(config, survey, folder)
        job.datamodule.report = lambda done, total: None
        return TinyJob(config, folder, survey, job)

    def run(self, *overrides: str) -> TinyRun:
        """Train and return the outcome; asked again in one process, the same outcome."""
        if overrides not in self._finished:
            self._finished[overrides] = self.run_anew(*overrides)
        return self._finished[overrides]

    def run_anew(self, *overrides: str) -> TinyRun:
        """Train, whatever was trained before."""
        raw = self.compose(*overrides)
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            try:
                value = run(raw)
            finally:
                close_log()
        return TinyRun(value, stdout.getvalue(), Path(raw.output_dir, raw.name, raw.run_id))

    def _base(self) -> list[str]:
        own = ["~local"] if (conf_dir() / "local").is_dir() else []  # a user's own defaults
        return [
            *own,
            "~experiment",
            "model=sd15",
            f"model.path={self.base}",
            "model.native_resolution=64",
            "data=folder",
            f"data.image_dir={self.images}",
            f"data.batch_size={BATCH_SIZE}",
            "data.num_workers=0",
            "data.buckets={enabled: true, step: 16, min_side: 32, max_side: 128}",
            "data.captions.caption_dropout=0",
            f"data.latent_cache.directory={self.root / 'latent-cache'}",
            "adapter.rank=2",
            "optimizer.lr=0.01",
            "trainer=cpu",
            f"trainer.max_steps={NUM_STEPS}",
            "trainer.log_every_n_steps=1",
            "logger=none",
            "preview=none",
            "export.precision=fp32",
            "name=tiny",
            f"run_id=run-{next(self._numbers)}",
            f"output_dir={self.root / 'outputs'}",
        ]


def changed(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Return the names of the tensors that differ in any bit; the names must be the same."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]

"""What a step is made from and what comes of it: written down, or compared with a recording."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from loralab.adapters import container
from loralab.adapters.export import write_adapter
from loralab.data.recording import MicroBatchTensors, write_tensors
from loralab.errors import Problem, ResumeError
from loralab.training.callbacks.steps import StepCallback, gradient_norm
from loralab.training.module import LoRATrainingModule

FOLDER, PIECES = "recording", "pieces"
START_FILE, BATCHES_FILE = "start.safetensors", "batches.safetensors"


class MicroStepCallback(StepCallback):
    """A callback that is told what came of every micro-batch.

    Attributes:
        norm: () gradient norm before clipping of the optimizer step that this micro-batch ended;
            None if it ended none.
        rates: The learning rates of that step by group.
    """

    def __init__(self) -> None:
        self.norm: Tensor | None = None
        self.rates: dict[str, float] = {}

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any
    ) -> None:
        """Take the norm and the rates; clipping comes afterwards."""
        self.norm = gradient_norm(trainer, optimizer)
        self.rates = {group["name"]: group["lr"] for group in optimizer.param_groups}

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Tell of the micro-batch."""
        assert isinstance(module, LoRATrainingModule)
        assert module.last is not None
        # What the step returned: before Lightning divides it by the accumulation.
        loss = module.last.loss * module.micro_batches_a_step()
        self.on_micro_step(trainer, module, batch, loss)
        self.norm, self.rates = None, {}
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)

    def on_micro_step(
        self, trainer: L.Trainer, module: LoRATrainingModule, batch: Any, loss: Tensor
    ) -> None:
        """Take notice of a micro-batch and its loss ()."""


class Recorder(MicroStepCallback):
    """Writes every micro-batch to a file of its own, so that a killed run loses none."""

    def __init__(self, folder: Path) -> None:
        """Write below this folder."""
        super().__init__()
        self.folder = folder

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Keep the adapter that training starts from.

        Raises:
            ResumeError: The run began without a recording.
        """
        super().on_train_start(trainer, module)
        assert isinstance(module, LoRATrainingModule)
        path = self.folder / START_FILE
        if trainer.global_step == 0:
            write_adapter(
                path,
                module.adapted,
                layout="kohya",
                dtype=torch.float32,
                metadata={},
                prefixes=module.family.spec.export_prefix,
            )
        elif not path.is_file():
            text = (
                f"record is true, but the run began without it: {path} is missing. Set "
                "record=false, or start a new run."
            )
            raise ResumeError(Problem("record", text))

    def on_micro_step(
        self, trainer: L.Trainer, module: LoRATrainingModule, batch: Any, loss: Tensor
    ) -> None:
        """Write the micro-batch."""
        tensors = recorded(module, batch) | {"loss": loss}
        if self.norm is not None:
            tensors["gradient_norm"] = self.norm
        number = batch["epoch"] * trainer.num_training_batches + batch["micro_batch"]
        write_tensors(self.folder / PIECES / f"{int(number):06d}.safetensors", tensors)


def join_pieces(folder: Path) -> None:
    """Make one file of the micro-batches that a recorder has written below a folder."""

    def tensor(path: Path, name: str) -> Tensor:
        return container.read(path)[0][name]

    tensors = {
        f"{path.stem}.{name}": container.LazyTensor(
            tuple(found.shape), found.dtype, partial(tensor, path, name)
        )
        for path in sorted((folder / PIECES).glob("*.safetensors"))
        for name, found in container.read(path)[0].items()
    }
    container.write(folder / BATCHES_FILE, tensors, {}, with_hashes=False)
    shutil.rmtree(folder / PIECES)


def recorded(module: LoRATrainingModule, batch: Any) -> MicroBatchTensors:
    """Return what the micro-batch was made from, by the names of `loralab.data.recording`."""
    last = module.last
    assert last is not None
    tokens = module.conditioner.tokenize(batch["captions"])  # (B, E, N, R)
    sizes = ("original_size", "crop_top_left", "target_size")
    tensors = {
        "latents": last.latents,
        "noise": last.sample.noise,
        "timesteps": last.sample.timesteps,
        "input_ids": tokens[:, 0] if tokens.shape[1] == 1 else tokens,
        "loss_weight": batch["loss_weight"],
        "sizes": torch.cat([batch[name] for name in sizes], dim=1),
        "place": torch.tensor([batch["epoch"], batch["micro_batch"]]),
    }
    if last.sample.input_noise is not last.sample.noise:
        tensors["input_noise"] = last.sample.input_noise
    if "mask" in batch:
        tensors["mask"] = batch["mask"]
    return tensors


class ReplayReport(MicroStepCallback):
    """Prints one JSON line for every micro-batch, and compares it with what was recorded."""

    def __init__(
        self, recorded: Sequence[Mapping[str, Tensor]], *, show: Callable[[str], None]
    ) -> None:
        """Take the recorded tensors of every micro-batch and where lines go."""
        super().__init__()
        self.recorded = recorded
        self.show = show
        self.departures: list[str] = []
        self.num_done = self.num_compared = 0

    def on_micro_step(
        self, trainer: L.Trainer, module: LoRATrainingModule, batch: Any, loss: Tensor
    ) -> None:
        """Print the figures of the micro-batch; a filler is none of the recording."""
        if any(batch.get("is_filler", ())):
            return
        figures = {"loss": loss}
        line: dict[str, Any] = {"micro_step": self.num_done, "loss": float(loss)}
        if self.norm is not None:
            figures["gradient_norm"] = self.norm
            line |= {
                "step": trainer.global_step,
                "gradient_norm": float(self.norm),
                "learning_rates": self.rates,
            }
        self.show(json.dumps(line))
        for name, ours in figures.items():
            if (theirs := self.recorded[self.num_done].get(name)) is not None:
                self._compare(name, float(ours), float(theirs))
        self.num_done += 1

    @property
    def verdict(self) -> str:
        """Say whether the recorded figures came out again, and where they first did not."""
        if not self.num_compared:
            return "The recording holds no losses or gradient norms to compare with."
        if self.departures:
            count = f"{len(self.departures)} of {self.num_compared} recorded figures"
            return f"{count} came out otherwise; the first: {self.departures[0]}."
        return f"All {self.num_compared} recorded losses and gradient norms came out bit for bit."

    def _compare(self, name: str, ours: float, theirs: float) -> None:
        self.num_compared += 1
        if ours != theirs and not (math.isnan(ours) and math.isnan(theirs)):
            relative = abs(ours - theirs) / max(abs(theirs), 1e-30)
            self.departures.append(
                f"{name} of micro-batch {self.num_done} is {ours:.9g} instead of {theirs:.9g}, "
                f"{relative:.1e} of it"
            )

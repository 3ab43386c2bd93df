"""Loss, loss by timestep, rates, norms, speed and memory, at the logging cadence.

Sums are kept on the device and in checkpoints, so logging costs no wait and a resumed run logs
the same numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import psutil
import torch
from torch import Tensor

from loralab.adapters.state import adapter_norm
from loralab.errors import Problem, UserError
from loralab.training.callbacks.steps import StepCallback, gradient_norm
from loralab.training.module import LoRATrainingModule

NUM_BANDS = 4
MOST_NAMED = 5  # images of a first step that gave no number


class Statistics(StepCallback):
    """Logs every `trainer.log_every_n_steps` optimizer steps."""

    def __init__(self) -> None:
        self.loss: float | None = None  # latest logged loss, for the progress line
        self.images_per_second: float | None = None
        # Errors by band of timesteps, their numbers, the same of class images, loss, steps.
        self._sums = torch.zeros(2 * NUM_BANDS + 4)  # float32: Apple's GPUs know no float64
        self._images, self._seconds, self._started = 0, 0.0, 0.0
        self._grad_norm: Tensor | None = None
        self._rates: dict[str, float] = {}
        self._untrained: list[tuple[list[str], Tensor]] = []  # images of the first step, errors

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Move the sums to where the losses are."""
        super().on_train_start(trainer, module)
        self._sums = self._sums.to(module.device)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock of this forward and backward pass."""
        self._started = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any
    ) -> None:
        """Take the rates in use and the gradient's norm before clipping, if this step is logged."""
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
            self._rates |= {  # D-Adaptation and Prodigy call d the rate that they have found
                f"{group['name']}_found": float(group["d"]) * group["lr"]
                for group in optimizer.param_groups
                if "d" in group
            }
            self._grad_norm = gradient_norm(trainer, optimizer)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add this micro-batch."""
        assert isinstance(module, LoRATrainingModule)
        self._add(module, batch)
        if self._last_step == 0:
            assert module.last is not None
            self._untrained.append((batch.get("names") or batch["keys"], module.last.error))
        self._seconds += time.perf_counter() - self._started
        self._images += len(batch["keys"])
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)

    def on_step_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Count the step; log when it is time."""
        assert isinstance(module, LoRATrainingModule)
        self._sums[-1] += 1
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums since the last logging."""
        return {"sums": self._sums.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the sums of the checkpoint."""
        self._sums = state["sums"].float()

    def _add(self, module: LoRATrainingModule, batch: Any) -> None:
        last = module.last
        assert last is not None
        num_timesteps = module.objective.schedule.num_timesteps
        bands = last.sample.timesteps * NUM_BANDS // num_timesteps  # (B,)
        counted, error = last.counted.float(), last.error
        is_prior = batch.get("is_prior") or [False] * len(batch["keys"])
        if any(is_prior):  # their errors have another level and would hide those of the images
            prior = counted * torch.tensor(is_prior, dtype=torch.float32, device=counted.device)
            self._sums[-4:-2] += torch.stack([(error * prior).sum(), prior.sum()])
            counted = counted - prior
        self._sums[:NUM_BANDS].index_add_(0, bands, error * counted)
        self._sums[NUM_BANDS : 2 * NUM_BANDS].index_add_(0, bands, counted)
        self._sums[-2] += last.loss

    def _log(self, trainer: L.Trainer, module: LoRATrainingModule) -> None:
        sums = trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        *cells, prior, num_prior, loss, steps = sums
        world = trainer.world_size
        self.loss = loss / (steps / world)
        if not math.isfinite(self.loss):
            raise UserError(self._not_finite(self.loss, trainer))
        self.images_per_second = self._images * world / max(self._seconds, 1e-9)
        figures: dict[str, float] = {
            "train/loss": self.loss,
            "speed/images_per_second": self.images_per_second,
            "memory/gib": memory_bytes(module.device) / 2**30,
            "epoch": float(trainer.current_epoch),
        }
        if self._grad_norm is not None:  # fused into the backward pass, steps leave none behind
            figures["train/gradient_norm"] = float(self._grad_norm)
        width = module.objective.schedule.num_timesteps // NUM_BANDS
        for band in range(NUM_BANDS):
            if cells[NUM_BANDS + band]:
                name = f"train/loss_by_timestep/{band * width:03d}-{(band + 1) * width - 1:03d}"
                figures[name] = cells[band] / cells[NUM_BANDS + band]
        if num_prior:
            figures["train/loss_prior"] = prior / num_prior
        figures |= {f"learning_rate/{name}": rate for name, rate in self._rates.items()}
        for name, part in module.adapted.items():
            figures[f"adapter_norm/{name}"] = float(adapter_norm(part))
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
        self._sums.zero_()
        self._images, self._seconds = 0, 0.0

    def _not_finite(self, loss: float, trainer: L.Trainer) -> Problem:
        """Say whether training did it, or the base and the images before anything was learnt."""
        names = [
            name
            for batch, errors in self._untrained
            for name, is_sound in zip(batch, errors.isfinite().tolist(), strict=True)
            if not is_sound
        ]
        found = torch.tensor(float(len(names)), device=self._sums.device)
        if float(trainer.strategy.reduce(found, reduce_op="sum")) == 0:  # on no device
            return _diverged(loss, trainer.global_step)
        return _broken_from_the_start(loss, names, trainer)


def _broken_from_the_start(loss: float, names: Sequence[str], trainer: L.Trainer) -> Problem:
    shown = ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
    return Problem(
        "model.path",
        f"train/loss is {loss} at step {trainer.global_step}, and was no number in the first step, "
        f"before anything was learnt{f' (images: {shown})' if names else ''}: the rate is not at "
        "fault. Look at these images, set model.weight_dtype=fp32 and trainer.precision=32-true "
        f"(it is {trainer.precision}), or check the weights of model.path and adapter.init_from.",
    )


def _diverged(loss: float, step: int) -> Problem:
    return Problem(
        "optimizer.lr",
        f"train/loss is {loss} at step {step}, so the weights are lost; lower optimizer.lr, set "
        "trainer.gradient_clip_val=1.0, and continue from an earlier checkpoint or start anew.",
    )


def memory_bytes(device: torch.device) -> int:
    """Return the largest memory held on a GPU so far, or the process's present memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)

"""The training step, and validation at fixed noise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from loralab.adapters.inject import adapter_disabled
from loralab.adapters.state import (
    adapter_state,
    load_adapter_state,
    state_problems,
    trainable_parameters,
)
from loralab.data.batch import Batch, check_batch
from loralab.diffusion.noise import draw_noise, sample_generator
from loralab.diffusion.objective import LossTerms, NoisyLatents, Objective
from loralab.diffusion.timesteps import fixed_strata
from loralab.errors import AdapterError, Problem
from loralab.models.codec import LatentCodec, mean_latents, sample_latents
from loralab.models.family import ModelFamily


@dataclass(frozen=True)
class MicroBatchRecord:
    """What the last forward pass saw: detached, on the device, for statistics.

    Attributes:
        loss: () its share of the window's loss.
        error: (B,) plain mean squared error.
        timesteps: (B,) int64.
        counted: (B,) bool, False for fillers.
    """

    loss: Tensor
    error: Tensor
    timesteps: Tensor
    counted: Tensor


class LoRATrainingModule(L.LightningModule):
    """Trains the adapters of a model family; the base stays frozen and out of checkpoints."""

    strict_loading = False  # only the adapter is saved; load_state_dict compares its keys itself

    def __init__(
        self,
        family: ModelFamily,
        objective: Objective,
        *,
        adapted: Sequence[str],
        make_optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        lr_multiplier: Callable[[int], float],
        learning_rates: Mapping[str, float],
        seed: int,
        validation_seed: int = 0,
        validation_strata: int = 4,
    ) -> None:
        """Keep the parts.

        Args:
            family: The base model, adapters injected.
            objective: Draws noisy latents and measures predictions.
            adapted: Names of the parts that carry an adapter.
            make_optimizer: Parameter groups -> optimizer.
            lr_multiplier: Optimizer step -> multiple of each group's rate.
            learning_rates: Peak rate by part.
            seed: Seed of noise, timesteps, posterior and dropout.
            validation_seed: Seed of the validation noise.
            validation_strata: Timesteps each held-out image is measured at.
        """
        super().__init__()
        self.family = family
        self.denoiser = family.denoiser
        self.conditioner = family.conditioner
        self.objective = objective
        self.adapted: dict[str, nn.Module] = {name: family.parts[name] for name in adapted}
        self.make_optimizer = make_optimizer
        self.lr_multiplier = lr_multiplier
        self.learning_rates = dict(learning_rates)
        self.seed = seed
        self.validation_seed = validation_seed
        self.validation_strata = validation_strata
        self.last: MicroBatchRecord | None = None
        self.base_errors: Tensor | None = None  # (K,) error by stratum, adapter off
        self.validated_step: int | None = None  # optimizer steps done at the last validation
        self._errors: dict[str, list[Tensor]] = {"adapter": [], "base": []}
        self._codec: list[LatentCodec] = []  # in a list, so that it is no submodule
        self._batch_checked = False

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the micro-batch's share of its window's loss, ready for Lightning's averaging."""
        self.seed_dropout(batch)
        latents = self.latents(batch)  # (B, C, h, w)
        conditioning = self.conditioner.encode(batch["captions"], input_ids=batch.get("input_ids"))
        sample = self.objective.draw(
            latents,
            self.generators(batch, "noise"),
            timesteps=batch.get("timesteps"),
            noise=batch.get("noise"),
        )
        prediction = self.denoiser(sample.noisy, sample.timesteps, conditioning)
        terms = self.objective(prediction, latents, sample, weight=batch["loss_weight"])
        self.record(terms, sample, batch["loss_weight"])
        # Lightning divides by the accumulation and the gradients are averaged over the ranks.
        loss: Tensor = terms.loss * self.micro_batches_a_step()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure each held-out image at every stratum, with noise fixed by its content."""
        self._errors["adapter"].append(self.stratum_errors(batch))
        if self.base_errors is None:
            with adapter_disabled(self.adapted.values()):
                self._errors["base"].append(self.stratum_errors(batch))

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss`, beside it the figure of the base, and the loss by timestep."""
        errors = self._mean_errors("adapter")
        if self.base_errors is None:
            self.base_errors = self._mean_errors("base")
        figures = {"val/loss": errors.mean(), "val/loss_base": self.base_errors.mean()}
        for timestep, error in zip(self.strata().tolist(), errors, strict=True):
            figures[f"val/loss_at_timestep/{timestep:03d}"] = error
        self.validated_step = self.trainer.global_step
        self.log_dict(figures, logger=False)
        # Lightning 2.6 would write a validation inside an epoch one step too early.
        values = {name: float(figure) for name, figure in figures.items()}
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=self.trainer.global_step)

    def configure_optimizers(self) -> Any:
        """Return one parameter group per part, each at its own rate, under one schedule."""
        groups = [
            {"params": trainable_parameters(part), "lr": self.learning_rates[name], "name": name}
            for name, part in self.adapted.items()
        ]
        optimizer = self.make_optimizer(groups)
        schedule = LambdaLR(optimizer, self.lr_multiplier)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    # -- the parts of a step ------------------------------------------------------------------

    def generators(self, batch: Batch, purpose: str) -> list[torch.Generator]:
        """Return one CPU generator per sample: position and purpose -> randomness."""
        return [sample_generator(self.seed, batch["epoch"], key, purpose) for key in batch["keys"]]

    def seed_dropout(self, batch: Batch) -> None:
        """Seed what draws from torch's global generator (dropout) by the place in the plan."""
        if not self._batch_checked:
            check_batch(batch)
            self._batch_checked = True
        place = f"{self.seed}:{batch['epoch']}:{batch['micro_batch']}:dropout"
        seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "little")
        # torch.manual_seed formats tracebacks for kinds of devices that are not there (torch 2.13).
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def latents(self, batch: Batch) -> Tensor:
        """Return scaled latents (B, C, h, w) float32: recorded, cached or encoded now."""
        if "latents" in batch:
            return batch["latents"]
        generators = self.generators(batch, "posterior")
        return sample_latents(self.moments(batch), self.family.latent_scale, generators)

    def moments(self, batch: Batch) -> Tensor:
        """Return VAE moments (B, 2C, h, w) from the cache or from the images."""
        if "moments" in batch:
            return batch["moments"]
        return self.codec().moments(batch["images"])

    def codec(self) -> LatentCodec:
        """Return the VAE, loaded when it is first needed."""
        if not self._codec:
            self._codec.append(self.family.load_codec().to(self.device))
        return self._codec[0]

    def micro_batches_a_step(self) -> int:
        """Return the size of a window: what all ranks and all accumulation rounds add up."""
        return int(self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def record(self, terms: LossTerms, sample: NoisyLatents, weight: Tensor) -> None:
        """Keep this micro-batch's figures for the statistics; nothing is read back here."""
        self.last = MicroBatchRecord(terms.loss.detach(), terms.error, sample.timesteps, weight > 0)

    # -- validation ---------------------------------------------------------------------------

    def strata(self) -> Tensor:
        """Return the validation timesteps, (K,) int64."""
        return fixed_strata(
            self.validation_strata, num_timesteps=self.objective.schedule.num_timesteps
        )

    def stratum_errors(self, batch: Batch) -> Tensor:
        """Return the plain error of each image at each stratum, (B, K) float32."""
        latents = mean_latents(self.moments(batch), self.family.latent_scale)
        conditioning = self.conditioner.encode(batch["captions"])
        columns = []
        for number, timestep in enumerate(self.strata()):
            generators = [
                sample_generator(self.validation_seed, 0, key, f"validation:{number}")
                for key in batch["keys"]
            ]
            sample = self.objective.draw(
                latents,
                generators,
                timesteps=timestep.expand(len(generators)),
                noise=draw_noise(latents.shape, generators),
            )
            prediction = self.denoiser(sample.noisy, sample.timesteps, conditioning)
            weight = torch.zeros(len(generators), device=latents.device)
            columns.append(self.objective(prediction, latents, sample, weight=weight).error)
        counted = batch["loss_weight"] > 0  # fillers of other ranks do not count twice
        return torch.stack(columns, dim=1)[counted]

    def _mean_errors(self, which: str) -> Tensor:
        """Return the mean over all images of all ranks by stratum, (K,), and forget the rows."""
        rows = torch.cat(self._errors[which]).double()
        self._errors[which] = []
        total = torch.cat([rows.sum(0), rows.new_tensor([len(rows)])])
        total = self.trainer.strategy.reduce(total, reduce_op="sum")
        assert isinstance(total, Tensor)
        return (total[:-1] / total[-1]).float()

    # -- checkpoints --------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the adapter tensors only, `part.module.tensor`."""
        return {
            f"{name}.{key}": tensor
            for name, part in self.adapted.items()
            for key, tensor in adapter_state(part).items()
        }

    def load_state_dict(  # type: ignore[override]
        self, state: Mapping[str, Tensor], *args: Any, **kwargs: Any
    ) -> None:
        """Load adapter tensors; every key that differs is named.

        Raises:
            AdapterError: Keys or shapes differ.
        """
        own: dict[str, dict[str, Tensor]] = {name: {} for name in self.adapted}
        problems = []
        for key, tensor in state.items():
            name, _, path = key.partition(".")
            if name in own:
                own[name][path] = tensor
            else:
                text = f"{key} is in the checkpoint, but {name} has no adapter in this run."
                problems.append(Problem(key, text))
        for name, part in self.adapted.items():
            problems += [
                Problem(f"{name}.{problem.key}", f"{name}.{problem.message}")
                for problem in state_problems(part, own[name])
            ]
        if problems:  # of any part, before anything is copied
            raise AdapterError(*problems)
        for name, part in self.adapted.items():
            load_adapter_state(part, own[name])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the base's validation figure: it is measured once in a run's life."""
        checkpoint["base_errors"] = self.base_errors

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the base's validation figure back."""
        self.base_errors = checkpoint["base_errors"]

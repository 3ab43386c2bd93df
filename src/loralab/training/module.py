"""The training step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
)
from loralab.data.batch import Batch, check_batch
from loralab.diffusion.noise import position_seed, sample_generator
from loralab.diffusion.objective import LossTerms, NoisyLatents, Objective
from loralab.diffusion.timesteps import WindowPlace
from loralab.errors import AdapterError, DataError, Problem
from loralab.models.codec import LatentCodec, sample_latents
from loralab.models.conditioning import Conditioning
from loralab.models.family import ModelFamily
from loralab.training.averaging import (
    MovingAverage,
    copy_of,
    is_schedule_free,
    schedule_free_weights,
)
from loralab.training.param_groups import RateRules, in_order, parameter_groups


@dataclass(frozen=True)
class MicroBatchRecord:
    """What the last forward pass saw: detached, on the device, for statistics.

    Attributes:
        loss: () its share of the window's loss.
        error: (B,) plain mean squared error.
        latents: (B, C, h, w) what the sample was made from.
        sample: What the denoiser was shown.
        counted: (B,) bool, False for fillers.
    """

    loss: Tensor
    error: Tensor
    latents: Tensor
    sample: NoisyLatents
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
        posterior: str = "resample",
        rate_rules: Mapping[str, RateRules] | None = None,
        average: MovingAverage | None = None,
    ) -> None:
        """Keep the parts.

        Args:
            family: The base model, adapters injected.
            objective: Draws noisy latents and measures predictions.
            adapted: Names of the parts that carry an adapter.
            make_optimizer: Parameter groups -> optimizer.
            lr_multiplier: Optimizer step -> multiple of each group's rate.
            learning_rates: Peak rate by part.
            rate_rules: What changes that rate inside a part.
            seed: Seed of noise, timesteps, posterior and dropout.
            posterior: ``resample`` draws an image's latents anew at each visit, ``frozen`` draws
                them once: the same at all visits, in all runs.
            average: What is measured, drawn or exported instead of the live weights.
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
        self.rate_rules = dict(rate_rules or {})
        self.seed = seed
        self.posterior = posterior
        self.average = average
        self.optimizer: Optimizer | None = None  # once training has begun
        self.last: MicroBatchRecord | None = None
        self._codec: list[LatentCodec] = []  # in a list, so that it is no submodule
        self._batch_checked = False
        self._figures: dict[str, float] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the micro-batch's share of its window's loss, ready for Lightning's averaging."""
        self.seed_dropout(batch)
        latents = self.latents(batch)  # (B, C, h, w)
        conditioning = self.conditioning(batch)
        sample = self.objective.draw(
            latents,
            self.generators(batch, "noise"),
            timesteps=batch.get("timesteps"),
            noise=batch.get("noise"),
            input_noise=batch.get("input_noise"),
            window=self.window_place(batch),
        )
        prediction = self.denoiser(sample.noisy, sample.timesteps, conditioning)
        terms = self.objective(
            prediction,
            latents,
            sample,
            weight=batch["loss_weight"],
            mask=batch.get("mask"),
            teacher=self.teacher_prediction(batch, sample),
        )
        self.record(terms, latents, sample, batch["loss_weight"])
        # Lightning divides by the accumulation and the gradients are averaged over the ranks.
        loss: Tensor = terms.loss * self.micro_batches_a_step()
        return loss

    def configure_optimizers(self) -> Any:
        """Return one parameter group per rate, all under one schedule."""
        groups = [
            group
            for name in in_order(self.adapted)
            for group in parameter_groups(
                name,
                self.adapted[name],
                self.learning_rates[name],
                self.rate_rules.get(name, RateRules()),
            )
        ]
        optimizer = self.optimizer = self.make_optimizer(groups)
        schedule = LambdaLR(optimizer, self.lr_multiplier)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Put a schedule-free optimizer to work."""
        if self.optimizer is not None and is_schedule_free(self.optimizer):
            self.optimizer.train()  # type: ignore[attr-defined]

    # -- averages -----------------------------------------------------------------------------

    @contextmanager
    def weights_for(self, use: str) -> Iterator[None]:
        """Hold the weights for ``validation``, ``preview`` or ``export``; then the live ones."""
        average = self._average_for(use)
        if average is None:
            yield
            return
        live = copy_of(self.state_dict())
        self.load_state_dict(average)
        try:
            yield
        finally:
            self.load_state_dict(live)

    def _average_for(self, use: str) -> Mapping[str, Tensor] | None:
        if self.optimizer is not None and is_schedule_free(self.optimizer):
            return schedule_free_weights(self.optimizer, self.state_dict())
        if self.average is not None and use in self.average.use_for:
            return self.average.weights or None
        return None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the latest figures, and the weights that an export takes, if not the live ones."""
        average = self._average_for("export")
        if average is not None:
            checkpoint["export_weights"] = copy_of(average)
        figures = self.trainer.callback_metrics.items()
        checkpoint["figures"] = {name: float(value) for name, value in figures}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the latest figures until Lightning has forgotten those of runs before."""
        self._figures = dict(checkpoint.get("figures", {}))

    def on_fit_start(self) -> None:
        """Report the figures of the checkpoint, which files name until there are newer ones."""
        figures = {name: torch.tensor(value) for name, value in self._figures.items()}
        self.trainer.callback_metrics.update(figures)

    # -- the parts of a step ------------------------------------------------------------------

    def generators(self, batch: Batch, purpose: str) -> list[torch.Generator]:
        """Return one CPU generator per sample: position and purpose -> randomness."""
        return [sample_generator(self.seed, batch["epoch"], key, purpose) for key in batch["keys"]]

    def window_place(self, batch: Batch) -> WindowPlace:
        """Return where the batch stands in its optimizer step, and what that step shares."""
        window = batch["micro_batch"] // self.micro_batches_a_step()
        seed = position_seed(self.seed, batch["epoch"], f"window {window}", "timesteps")
        # A recorded batch knows no neighbours and is a window of its own.
        place = batch.get("window_place") or {"first": 0, "size": len(batch["keys"])}
        return WindowPlace(place["first"], place["size"], seed)

    def teacher_prediction(self, batch: Batch, sample: NoisyLatents) -> Tensor | None:
        """Return the base's own answer (B, C, h, w) to the same sample, if it is to be kept."""
        if not self.objective.needs_teacher:
            return None
        with torch.no_grad(), adapter_disabled(self.adapted.values()):
            conditioning = self.conditioning(batch)
            prediction: Tensor = self.denoiser(sample.noisy, sample.timesteps, conditioning)
            return prediction

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
        generators = self.posterior_generators(batch)
        return sample_latents(self.moments(batch), self.family.latent_scale, generators)

    def posterior_generators(self, batch: Batch) -> list[torch.Generator]:
        """Return what draws from the VAE's posterior: anew at each visit, or by content alone."""
        if self.posterior == "resample":
            return self.generators(batch, "posterior")
        digests = [key.partition("#")[0] for key in batch["keys"]]
        return [sample_generator(0, 0, digest, "posterior") for digest in digests]

    def moments(self, batch: Batch) -> Tensor:
        """Return VAE moments (B, 2C, h, w) from the cache or from the images."""
        if "moments" in batch:
            return batch["moments"]
        moments = self.codec().moments(batch["images"])
        for number, own in enumerate(moments):
            if not own.isfinite().all():
                name = (batch.get("names") or batch["keys"])[number]
                is_exact = self.codec().vae.dtype is torch.float32
                advice = "check the VAE's weights" if is_exact else "set model.vae_dtype=fp32"
                text = f"{name} is encoded to values that are not finite; take it out, or {advice}."
                raise DataError(Problem(name, text))
        return moments

    def conditioning(self, batch: Batch) -> Conditioning:
        """Return what the captions and the true sizes of the pictures tell the denoiser."""
        sizes = [batch["original_size"], batch["crop_top_left"], batch["target_size"]]
        return self.conditioner.encode(
            batch["captions"], sizes=torch.cat(sizes, dim=1), input_ids=batch.get("input_ids")
        )

    def codec(self) -> LatentCodec:
        """Return the VAE, loaded when it is first needed."""
        if not self._codec:
            self._codec.append(self.family.load_codec().to(self.device))
        return self._codec[0]

    def micro_batches_a_step(self) -> int:
        """Return the size of a window: what all ranks and all accumulation rounds add up."""
        return int(self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def record(
        self, terms: LossTerms, latents: Tensor, sample: NoisyLatents, weight: Tensor
    ) -> None:
        """Keep what this micro-batch was and gave, for callbacks; nothing is read back here."""
        loss = terms.loss.detach()
        self.last = MicroBatchRecord(loss, terms.error, latents.detach(), sample, weight > 0)

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

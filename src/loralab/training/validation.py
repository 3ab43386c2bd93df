"""Validation: errors of fixed images at fixed noise, and what may be concluded from them.

Measuring depends on the weights alone, so all measurements of an image are paired: the noise, the
timesteps and the image are the same, and only the weights differ. Conclusions are pure functions
of the measurements, so a resumed run comes to the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from loralab.data.batch import Batch
from loralab.diffusion.noise import draw_noise, sample_generator
from loralab.models.codec import mean_latents
from loralab.training.loader import ResumableLoader
from loralab.training.module import LoRATrainingModule

BANDS = ("low", "middle", "high")  # thirds of the noise schedule
ALARM_ERRORS = 2.0  # standard errors by which an overfitting run differs from its best moment


@dataclass(frozen=True, eq=False)
class Measurement:
    """What one set of weights does on the images that are watched.

    Attributes:
        step: Optimizer steps done.
        held_out: (N, K) float32 plain errors by image and stratum, on the CPU.
        probe: (M, K) float32, the same on images that are trained on; None when not asked for.
    """

    step: int
    held_out: Tensor
    probe: Tensor | None


class Estimate(NamedTuple):
    """A mean over images and its standard error; the error of a single image is nan."""

    mean: float
    stderr: float


# -- measuring ------------------------------------------------------------------------------------


@torch.no_grad()  # not inference_mode: texts that are encoded here may be kept for training
def measure(
    trainer: L.Trainer,
    module: LoRATrainingModule,
    loader: ResumableLoader,
    *,
    seed: int,
    timesteps: Tensor,
) -> Tensor:
    """Return the plain error of every image of a loader at every timestep.

    Args:
        trainer: Whose devices and precision are used.
        module: What is measured, as it is now.
        loader: N images in a fixed order.
        seed: With an image's content and the stratum it fixes the noise.
        timesteps: (K,) int64.

    Returns:
        (N, K) float32 on the CPU, alike on all ranks.
    """
    errors = torch.zeros(len(loader.dataset), len(timesteps), device=module.device)  # type: ignore[arg-type]
    with _evaluating(module), trainer.precision_plugin.val_step_context():
        for batch in loader:
            batch = trainer.strategy.batch_to_device(batch, module.device)
            counted = batch["loss_weight"] > 0  # fillers belong to another rank
            rows = stratum_errors(module, batch, seed=seed, timesteps=timesteps)
            errors[batch["index"][counted]] = rows[counted]
    total = trainer.strategy.reduce(errors, reduce_op="sum")  # each image is one rank's
    assert isinstance(total, Tensor)
    return total.cpu()


def stratum_errors(
    module: LoRATrainingModule, batch: Batch, *, seed: int, timesteps: Tensor
) -> Tensor:
    """Return the plain error of each image of a batch at each timestep, (B, K) float32."""
    latents = mean_latents(module.moments(batch), module.family.latent_scale)
    conditioning = module.conditioning(batch)
    unweighted = torch.zeros(len(batch["keys"]), device=latents.device)
    columns = []
    for number, timestep in enumerate(timesteps):
        generators = [
            sample_generator(seed, 0, key, f"validation:{number}") for key in batch["keys"]
        ]
        sample = module.objective.draw(
            latents,
            generators,
            timesteps=timestep.expand(len(generators)),
            noise=draw_noise(latents.shape, generators),
        )
        prediction = module.denoiser(sample.noisy, sample.timesteps, conditioning)
        terms = module.objective(
            prediction, latents, sample, weight=unweighted, mask=batch.get("mask")
        )
        columns.append(terms.error)
    return torch.stack(columns, dim=1)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while; every submodule gets its own mode back."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


# -- concluding -----------------------------------------------------------------------------------


def estimate(values: Tensor) -> Estimate:
    """Return the mean of (N,) values and its standard error, ``s / sqrt(N)``."""
    spread = float(values.std()) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), spread / math.sqrt(len(values)))


def image_errors(errors: Tensor) -> Tensor:
    """Return each image's mean over the strata: (N, K) -> (N,) float64."""
    return errors.double().mean(dim=1)


def gain(before: Tensor, after: Tensor) -> Estimate:
    """Return by how much the loss fell, image by image: errors (N, K) of the same images."""
    return estimate(image_errors(before) - image_errors(after))


def gap(before: Measurement, after: Measurement) -> Estimate:
    """Return how much more the loss fell on trained images than on held-out ones.

    Each set is compared with itself, so it does not matter that one of them is harder.
    """
    assert before.probe is not None
    assert after.probe is not None
    trained, held_out = gain(before.probe, after.probe), gain(before.held_out, after.held_out)
    return Estimate(trained.mean - held_out.mean, math.hypot(trained.stderr, held_out.stderr))


def best(history: Sequence[Measurement]) -> Measurement:
    """Return the measurement with the lowest loss; the earliest of equals."""
    losses = [float(image_errors(entry.held_out).mean()) for entry in history]
    usable = [loss if math.isfinite(loss) else math.inf for loss in losses]
    return history[usable.index(min(usable))]


def best_steps(history: Sequence[Measurement], count: int) -> list[int]:
    """Return the steps of the lowest losses, the lowest first; the earliest of equals."""
    losses = {entry.step: float(image_errors(entry.held_out).mean()) for entry in history}
    return sorted((step for step, loss in losses.items() if math.isfinite(loss)),
                  key=lambda step: (losses[step], step))[:count]  # fmt: skip


def validations_in_vain(
    base: Measurement, history: Sequence[Measurement], *, min_improvement: float
) -> int:
    """Count the latest validations that brought no improvement.

    An improvement is a gain of more than `min_improvement` of its own standard errors over the
    last measurement that was one; at first that is the base.
    """
    reference, count = base, 0
    for entry in history:
        gained = gain(reference.held_out, entry.held_out)
        if gained.mean > min_improvement * gained.stderr:
            reference, count = entry, 0
        else:
            count += 1
    return count


def overfits(history: Sequence[Measurement]) -> bool:
    """Tell whether held-out images have got worse since the best moment and trained ones less so.

    Both must differ by more than `ALARM_ERRORS` standard errors. Needs probes.
    """
    peak, now = best(history), history[-1]
    lost, grown = gain(now.held_out, peak.held_out), gap(peak, now)
    return lost.mean > ALARM_ERRORS * lost.stderr and grown.mean > ALARM_ERRORS * grown.stderr


def overfitting_begins(history: Sequence[Measurement]) -> bool:
    """Tell whether the last measurement is the first since the best moment that overfits."""
    start = history.index(best(history)) + 1
    told = any(overfits(history[:end]) for end in range(start, len(history)))
    return overfits(history) and not told


def figures(
    base: Measurement, history: Sequence[Measurement], *, timesteps: Tensor, num_timesteps: int
) -> dict[str, float]:
    """Return everything that is logged about the last measurement, by name.

    Args:
        base: The same images with the adapter off.
        history: All measurements so far, at least one.
        timesteps: (K,) int64, what the strata stand for.
        num_timesteps: Length of the noise schedule.
    """
    now, peak = history[-1], best(history)
    loss, gained = estimate(image_errors(now.held_out)), gain(base.held_out, now.held_out)
    found = {
        "val/loss": loss.mean,
        "val/loss_stderr": loss.stderr,
        "val/loss_base": float(image_errors(base.held_out).mean()),
        "val/improvement": gained.mean,
        "val/improvement_stderr": gained.stderr,
        "val/best_loss": float(image_errors(peak.held_out).mean()),
        "val/best_step": float(peak.step),
    }
    if now.probe is not None:
        difference = gap(base, now)
        found["val/loss_train_probe"] = float(image_errors(now.probe).mean())
        found |= {"val/gap": difference.mean, "val/gap_stderr": difference.stderr}
        found["val/overfits"] = float(overfits(history))
    by_stratum = now.held_out.double().mean(dim=0)  # (K,)
    bands = timesteps * len(BANDS) // num_timesteps
    for number, band in enumerate(BANDS):
        if (bands == number).any():
            found[f"val/loss_{band}_noise"] = float(by_stratum[bands == number].mean())
    for timestep, error in zip(timesteps.tolist(), by_stratum.tolist(), strict=True):
        found[f"val/loss_at_timestep/{timestep:03d}"] = error
    if len(now.held_out) == 1:  # a single image has no standard error
        return {name: value for name, value in found.items() if not name.endswith("_stderr")}
    return found


def describe_validation(found: Mapping[str, float]) -> str:
    """Say the loss, that of the base, and how sure the difference is.

    Args:
        found: What `figures` returned.
    """
    ours, base, gained = found["val/loss"], found["val/loss_base"], found["val/improvement"]
    text = f"{ours:.4f}"
    if "val/loss_stderr" in found:
        text += f" ± {found['val/loss_stderr']:.4f}"
    word = "lower" if gained >= 0 else "higher"
    text += f", base {base:.4f}: {abs(gained):.4f}"
    if "val/improvement_stderr" in found:
        text += f" ± {found['val/improvement_stderr']:.4f}"
    return f"{text} {word} ({abs(gained / base):.0%})"

"""Pictures at fixed seeds, the base beside the present adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from loralab.adapters.inject import adapter_disabled
from loralab.data.contact_sheet import save_sheet
from loralab.models.sampling import sample_images
from loralab.training.callbacks.early_stopping import has_ended
from loralab.training.callbacks.steps import StepCallback
from loralab.training.module import LoRATrainingModule


@dataclass(frozen=True)
class PreviewOptions:
    """What to draw.

    Attributes:
        prompts: One picture each.
        negative_prompt: What guidance leads away from.
        num_steps: Sampling steps.
        guidance_scale: Classifier-free guidance; 1 is off.
        seed: Seed of the start noise.
        every_n_steps: Optimizer steps between previews; None draws at start and end only.
        size: (height, width) in px.
    """

    prompts: tuple[str, ...]
    negative_prompt: str
    num_steps: int
    guidance_scale: float
    seed: int
    every_n_steps: int | None
    size: tuple[int, int]


class Preview(StepCallback):
    """Draws at the start, every n steps and at the end; to TensorBoard and to the run folder.

    Attributes:
        base: (B,3,H,W) in [0,1], what the base draws; None where nothing is drawn.
        pictures: (B,3,H,W) in [0,1], the last preview.
        drawn_step: Optimizer step of the last preview.
    """

    def __init__(self, options: PreviewOptions, *, examples: Sequence[Tensor] = ()) -> None:
        """Keep the options.

        Args:
            options: What to draw.
            examples: (3, H, W) in [0, 1], real training images for the last picture.
        """
        self.options = options
        self.examples = examples
        self.base: Tensor | None = None
        self.pictures: Tensor | None = None
        self.drawn_step = -1

    def picture_of(self, step: int) -> Tensor | None:
        """Return the adapter's first picture (3, H, W) in [0, 1], if this step was drawn."""
        return self.pictures[0] if self.pictures is not None and self.drawn_step == step else None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Draw the base once."""
        super().on_train_start(trainer, module)
        assert isinstance(module, LoRATrainingModule)
        if not self.options.prompts or not trainer.is_global_zero:
            return
        with adapter_disabled(module.adapted.values()):
            self.base = self._draw(module)
        if trainer.global_step == 0:
            self._show(trainer, module)

    def on_step_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Draw when it is time; the end is drawn by `on_train_end`."""
        cadence = self.options.every_n_steps
        is_due = cadence is not None and trainer.global_step % cadence == 0
        if is_due and self.base is not None and not has_ended(trainer):
            self._show(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Draw the end: base, LoRA and real examples side by side."""
        if self.base is None or not has_ended(trainer):
            return
        if self.pictures is None or self.drawn_step != trainer.global_step:
            self._show(trainer, module)
        assert self.pictures is not None
        columns: dict[str, Sequence[Tensor]] = {
            "base": list(self.base), "LoRA": list(self.pictures)
        }  # fmt: skip
        if self.examples:
            columns["training images"] = self.examples
        labels = list(self.options.prompts)
        save_sheet(Path(trainer.default_root_dir) / "preview.png", columns, labels=labels)

    def _show(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, LoRATrainingModule)
        assert self.base is not None
        with module.weights_for("preview"):
            self.pictures = current = self._draw(module)
        self.drawn_step = step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                pairs = torch.cat([self.base, current], dim=3)  # (B, 3, H, 2W): base | current
                whole = pairs.mul(255).round().byte()  # TensorBoard would only cut off
                for prompt, pair in zip(self.options.prompts, whole, strict=True):
                    logger.experiment.add_image(f"preview/{prompt}", pair, step)
        save_sheet(
            Path(trainer.default_root_dir) / "previews" / f"step-{step:06d}.png",
            {"base": list(self.base), f"step {step}": list(current)},
            labels=list(self.options.prompts),
        )

    def _draw(self, module: LoRATrainingModule) -> Tensor:
        options, facts = self.options, module.family.facts
        with torch.autocast(module.device.type, enabled=False):
            return sample_images(
                denoiser=module.denoiser,
                conditioner=module.conditioner,
                codec=module.codec(),
                schedule_config=module.family.schedule_config,
                prompts=options.prompts,
                negative_prompt=options.negative_prompt,
                num_steps=options.num_steps,
                guidance_scale=options.guidance_scale,
                seed=options.seed,
                height=options.size[0],
                width=options.size[1],
                latent_channels=facts.latent_channels,
                vae_factor=facts.vae_factor,
            )

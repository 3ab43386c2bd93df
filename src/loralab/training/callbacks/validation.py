"""When validation is made, what is kept of it, and where it is told.

Lightning's own validation loop is not used: it forgets a validation that was due when the run was
killed, and it starts one when the run is asked to stop.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

from loralab.adapters.inject import adapter_disabled
from loralab.diffusion.timesteps import fixed_strata
from loralab.training.callbacks.steps import StepCallback
from loralab.training.loader import ResumableLoader
from loralab.training.module import LoRATrainingModule
from loralab.training.run_files import write_text
from loralab.training.validation import Measurement, figures, image_errors, measure

FILE = "validation.json"


class Validation(StepCallback):
    """Measures the held-out images every n steps and at the end; the base once.

    After each measurement the figures are in ``trainer.callback_metrics``, the losses of every
    image are in ``validation.json`` in the run folder, and the hook ``on_validation_end`` of every
    callback is called, as Lightning does it.

    Attributes:
        base: What the images give with the adapter off; None before the first validation.
        history: All measurements so far. It is in checkpoints, and all that watches validation
            (early stopping, plateau, the best checkpoint) is a function of it.
    """

    def __init__(self, *, seed: int, strata: int, every_n_steps: int | None) -> None:
        """Keep the options.

        Args:
            seed: Seed of the noise.
            strata: Timesteps each image is measured at.
            every_n_steps: Optimizer steps between validations; None measures the end only.
        """
        self.seed = seed
        self.strata = strata
        self.every_n_steps = every_n_steps
        self.base: Measurement | None = None
        self.history: list[Measurement] = []
        self._loaders: tuple[ResumableLoader, ResumableLoader | None] | None = None

    def losses_before(self, step: int) -> list[float]:
        """Return val/loss of the validations made before an optimizer step, oldest first."""
        return [
            float(image_errors(entry.held_out).mean())
            for entry in self.history
            if entry.step < step
        ]

    def figures(self, module: LoRATrainingModule) -> dict[str, float]:
        """Return the figures of the last validation; none before the first."""
        if self.base is None:
            return {}
        return figures(
            self.base,
            self.history,
            timesteps=self._timesteps(module),
            num_timesteps=module.objective.schedule.num_timesteps,
        )

    def on_step_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Validate when it is time; the step is not done before, and not saved, if asked to stop.

        A run that continues would otherwise log the step twice, if it is killed in turn.
        """
        if self._is_due(trainer):
            self.validate(trainer, module)

    def validate(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Measure now, log, and tell the other callbacks."""
        assert isinstance(module, LoRATrainingModule)
        if self.base is None:
            with adapter_disabled(module.adapted.values()):
                self.base = self._measure(trainer, module, step=0)
        with module.weights_for("validation"):
            self.history.append(self._measure(trainer, module, step=trainer.global_step))
        found = self.figures(module)
        trainer.callback_metrics.update(
            {name: torch.tensor(value) for name, value in found.items()}
        )
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.global_step)
        if trainer.is_global_zero:
            write_text(Path(trainer.default_root_dir) / FILE, self._as_json(trainer, module))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            callback.on_validation_end(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that was measured."""
        entries = [vars(entry) for entry in self.history]
        return {"base": vars(self.base) if self.base else None, "history": entries}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what was measured."""
        self.base = Measurement(**state["base"]) if state["base"] else None
        self.history = [Measurement(**entry) for entry in state["history"]]

    def _as_json(self, trainer: L.Trainer, module: LoRATrainingModule) -> str:
        """Return what was measured by image, and all that makes it comparable with other runs."""
        items = trainer.datamodule.validation_set.items  # type: ignore[attr-defined]
        images = [
            {
                "name": item.record.path.name,
                "digest": item.record.digest,
                "size": f"{item.bucket.width}x{item.bucket.height}",
            }
            for item in items
        ]
        losses = {entry.step: image_errors(entry.held_out).tolist() for entry in self.history}
        facts = {
            "seed": self.seed,
            "timesteps": self._timesteps(module).tolist(),
            "prediction_type": module.objective.schedule.prediction_type,
            "images": images,
            "losses": losses,
        }
        return json.dumps(facts, indent=1) + "\n"

    def _is_due(self, trainer: L.Trainer) -> bool:
        step = trainer.global_step
        on_cadence = self.every_n_steps is not None and step % self.every_n_steps == 0
        return on_cadence or step >= trainer.max_steps

    def _measure(self, trainer: L.Trainer, module: LoRATrainingModule, *, step: int) -> Measurement:
        if self._loaders is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            self._loaders = data.held_out_loader(), data.probe_loader()
        held_out, probe = (
            None
            if loader is None
            else measure(trainer, module, loader, seed=self.seed, timesteps=self._timesteps(module))
            for loader in self._loaders
        )
        assert held_out is not None
        return Measurement(step, held_out, probe)

    def _timesteps(self, module: LoRATrainingModule) -> torch.Tensor:
        return fixed_strata(self.strata, num_timesteps=module.objective.schedule.num_timesteps)

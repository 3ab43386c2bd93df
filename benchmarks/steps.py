"""One process that trains the demo and, in turns with it, the floor: what a step costs.

`python steps.py FOLDER` leaves `steps.json` (figures) and `record.pt` (recipe and batches of the
floor) in the folder. The training is the demo as `train.py` runs it; every `LENGTH` steps it is
held, and the floor makes as many steps on the very batches that were just trained.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from floor import Floor
from hydra import compose, initialize_config_dir

from loralab.app.build import Job, build
from loralab.app.folders import choose_folder
from loralab.app.logs import quiet_libraries
from loralab.app.preflight import Survey, preflight
from loralab.config.parse import parse_config
from loralab.config.records import RunConfig
from loralab.config.store import conf_dir, register
from loralab.data.batch import Batch
from loralab.training.callbacks.preview import Preview
from loralab.training.module import LoRATrainingModule

WARM_UP, LENGTH, ROUNDS = 20, 10, 10  # optimizer steps 20 to 120, ten at a time


class Meter:
    """CPU and wall seconds of a stretch, without what was set apart."""

    def __init__(self) -> None:
        self.apart: dict[str, list[float]] = defaultdict(list)
        self._cpu = self._wall = 0.0

    def start(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def stop(self) -> tuple[float, float]:
        """Return (CPU, wall) milliseconds per step."""
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        return 1000 * cpu / LENGTH, 1000 * wall / LENGTH

    def set_apart(self, owner: Any, method: str, name: str) -> None:
        """Time each call of a method under its own name, and take it out of the stretch."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            cpu, wall = time.process_time(), time.perf_counter()
            result = original(*args, **kwargs)
            spent_cpu, spent_wall = time.process_time() - cpu, time.perf_counter() - wall
            self._cpu += spent_cpu
            self._wall += spent_wall
            self.apart[name].append(spent_cpu)
            return result

        setattr(owner, method, timed)


class Turns(L.Callback):
    """Holds the training after every stretch and lets the floor make the same steps."""

    def __init__(self, floor: Floor, meter: Meter) -> None:
        self.floor = floor
        self.meter = meter
        self.ours: list[tuple[float, float]] = []
        self.floors: list[tuple[float, float]] = []
        self.batches: list[Batch] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, LoRATrainingModule)
        step = trainer.global_step
        if step == WARM_UP:
            check_same_loss(module, self.floor, self.batches[-1])
            for latents, captions in stored(module, self.batches):
                self.floor.step(latents, captions)
            self.meter.start()
        elif step > WARM_UP and (step - WARM_UP) % LENGTH == 0:
            self.ours.append(self.meter.stop())
            batches = stored(module, self.batches[-LENGTH:])
            self.meter.start()
            for latents, captions in batches:
                self.floor.step(latents, captions)
            self.floors.append(self.meter.stop())
            self.meter.start()
        self.batches.append(batch)


def stored(
    module: LoRATrainingModule, batches: list[Batch]
) -> list[tuple[torch.Tensor, list[str]]]:
    """Return latents and captions of batches as training saw them."""
    return [(module.latents(batch), batch["captions"]) for batch in batches]


def check_same_loss(module: LoRATrainingModule, floor: Floor, batch: Batch) -> None:
    """Give the floor our trained adapter; loss and gradients on one batch must then agree."""
    latents = module.latents(batch)
    noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (len(latents),))
    recorded: Any = {key: value for key, value in batch.items() if key != "moments"}
    recorded |= {"latents": latents, "noise": noise, "timesteps": timesteps}
    parameters = {name: named_trainable(part) for name, part in module.adapted.items()}
    for name, ours in parameters.items():
        theirs = named_trainable(floor.parts[name])
        assert ours.keys() == theirs.keys(), f"the floor adapts other layers of {name}"
        with torch.no_grad():
            for key in ours:
                theirs[key].copy_(ours[key])
    module.zero_grad()  # Lightning clears gradients just before the next backward pass
    our_loss = module.training_step(recorded, 0)
    floor_loss = floor.loss(latents, batch["captions"], noise, timesteps)
    torch.testing.assert_close(our_loss, floor_loss)
    our_loss.backward()
    floor_loss.backward()
    for name, ours in parameters.items():
        theirs = named_trainable(floor.parts[name])
        for key in ours:
            torch.testing.assert_close(ours[key].grad, theirs[key].grad, rtol=1e-3, atol=1e-6)
    module.zero_grad()
    floor.optimizer.zero_grad()


def named_trainable(part: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in part.named_parameters() if p.requires_grad}


def demo(folder: Path) -> tuple[RunConfig, Survey, Job]:
    """Return the objects of the demo, as `train.py` makes them."""
    register()
    changes = [f"output_dir={folder}", f"trainer.max_steps={WARM_UP + LENGTH * ROUNDS + 1}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = parse_config(compose("train", overrides=["experiment=demo", *changes]))
    place = choose_folder(config)
    survey = preflight(config, place)
    return config, survey, build(config, survey, place)


def floor_recipe(config: RunConfig, survey: Survey) -> dict[str, Any]:
    """Return the arguments that make the floor's model the same as ours."""
    adapters = {
        name: {
            "rank": part.spec.rank,
            "alpha": part.spec.alpha,
            "targets": list(part.spec.targets),
            "lr": part.learning_rate,
        }
        for name, part in survey.parts.items()
    }
    return {
        "base": config.model.path,
        "adapters": adapters,
        "clip_norm": config.trainer["gradient_clip_val"],
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    quiet_libraries()
    config, survey, job = demo(folder)
    assert job.trainer.accumulate_grad_batches == 1, "one batch is one step here"
    recipe = floor_recipe(config, survey)
    meter = Meter()
    turns = Turns(Floor(**recipe), meter)
    meter.set_apart(job.trainer.fit_loop.epoch_loop.val_loop, "run", "validation")
    meter.set_apart(job.trainer, "save_checkpoint", "checkpoint")
    for callback in job.trainer.callbacks:
        if isinstance(callback, Preview):
            meter.set_apart(callback, "_show", "preview")
    job.trainer.callbacks.insert(0, turns)
    job.trainer.fit(job.module, job.datamodule)
    torch.save(
        {"recipe": recipe, "batches": stored(job.module, turns.batches)}, folder / "record.pt"
    )
    figures = {"ours": turns.ours, "floor": turns.floors, "apart": meter.apart}
    (folder / "steps.json").write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

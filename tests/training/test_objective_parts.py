"""What the training step hands to the objective: masks, the teacher, numbers of any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from loralab.diffusion.objective import LossRecipe, Objective
from loralab.training.callbacks.statistics import Statistics
from loralab.training.module import LoRATrainingModule
from tests.training.test_step import recorded_batch

Make = Callable[..., Any]


def with_loss(module: LoRATrainingModule, **options: Any) -> LoRATrainingModule:
    """Return the module with another loss."""
    module.objective = Objective(module.objective.schedule, loss=LossRecipe(**options))
    return module


def gradients(module: LoRATrainingModule, batch: dict[str, Any]) -> list[Tensor]:
    """Return the gradients of one step."""
    module.zero_grad()
    module.training_step(batch, 0).backward()
    return [p.grad for p in module.parameters() if p.requires_grad and p.grad is not None]


def test_a_mask_of_the_batch_reaches_the_loss(make_module: Make, make_trainer: Make) -> None:
    module, batch = make_module(), recorded_batch()
    module.trainer = make_trainer()
    full, half = torch.ones(3, 1, 8, 8), torch.ones(3, 1, 8, 8)
    half[..., :4] = 0
    plain, unmasked, masked = (
        module.training_step(batch | extra, 0).detach()
        for extra in ({}, {"mask": full}, {"mask": half})
    )
    torch.testing.assert_close(unmasked, plain)
    assert masked != plain
    torch.testing.assert_close(masked, plain, rtol=0.3, atol=0)  # half a mask, not half the loss


def test_the_teacher_pulls_towards_the_base(make_module: Make, make_trainer: Make) -> None:
    """Adapters off, both the denoiser and the text encoder answer as the base does."""
    module, batch = with_loss(make_module(), preservation="output"), recorded_batch()
    module.trainer = make_trainer()
    plain = with_loss(make_module())
    plain.trainer = make_trainer()
    base = make_module(random=False)  # a new adapter changes nothing
    with torch.no_grad():
        sample = module.objective.draw(
            batch["latents"], [], timesteps=batch["timesteps"], noise=batch["noise"]
        )
        conditioning = plain.conditioning(batch)
        student = plain.denoiser(sample.noisy, sample.timesteps, conditioning)
        teacher = base.denoiser(sample.noisy, sample.timesteps, base.conditioning(batch))
        apart = (student - teacher).square().mean()
    assert apart > 1e-4
    loss, unheld = module.training_step(batch, 0), plain.training_step(batch, 0)
    torch.testing.assert_close(loss - unheld, apart, rtol=1e-3, atol=1e-6)


def test_the_teacher_leaves_gradients_and_dropout_alone(
    make_module: Make, make_trainer: Make
) -> None:
    # With next to no weight the step must be the plain one, whatever the second pass does.
    found = []
    for options in ({}, {"preservation": "output", "preservation_weight": 1e-30}):
        module = with_loss(make_module(dropout=0.5), **options)
        module.trainer = make_trainer()
        found.append(gradients(module, recorded_batch()))
    plain, kept = found
    assert len(plain) == len(kept) > 0
    for one, other in zip(plain, kept, strict=True):
        torch.testing.assert_close(one, other)


class NoFloat64(TorchDispatchMode):
    """Refuses what a GPU without float64 refuses: any such tensor that an operation makes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            assert not (isinstance(tensor, Tensor) and tensor.dtype == torch.float64), func
        return result


def test_a_step_and_its_statistics_need_no_float64(make_module: Make, make_trainer: Make) -> None:
    module, batch, statistics = make_module(), recorded_batch(), Statistics()
    trainer = make_trainer()
    module.trainer = trainer
    with NoFloat64():
        module.training_step(batch, 0).backward()
        statistics.on_train_start(trainer, module)
        statistics.on_train_batch_end(trainer, module, None, batch, 0)

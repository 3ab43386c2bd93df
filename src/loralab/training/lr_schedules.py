"""Learning-rate schedules: pure functions from optimizer step to a multiplier of the peak rate.

A shape says what happens after warm-up; warm-up is the same for all. A new schedule is one
function here, one line in `SHAPES` and one member of the config enum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any


def constant(step: int, num_steps: int) -> float:
    """Stay at the peak."""
    return 1.0


def linear(step: int, num_steps: int) -> float:
    """Fall in a straight line to 0."""
    return (num_steps - step) / num_steps


def cosine(step: int, num_steps: int) -> float:
    """Fall along half a cosine to 0 (Loshchilov & Hutter, 2017, equation 5, without restarts).

    https://arxiv.org/abs/1608.03983
    """
    return 0.5 * (1.0 + math.cos(math.pi * step / num_steps))


def cosine_with_restarts(step: int, num_steps: int, *, num_cycles: int) -> float:
    """Fall along half a cosine again and again, each time from the peak, and end at 0."""
    if step >= num_steps:
        return 0.0
    return _half_cosine(num_cycles * step / num_steps % 1.0)


def cosine_with_min_lr(step: int, num_steps: int, *, end_factor: float) -> float:
    """Fall along half a cosine to `end_factor`."""
    return _between(_half_cosine(step / num_steps), end_factor)


def polynomial(step: int, num_steps: int, *, power: float, end_factor: float) -> float:
    """Fall to `end_factor` as a power of the share of steps left; 1 is a straight line."""
    return _between((1.0 - step / num_steps) ** power, end_factor)


def inverse_sqrt(step: int, num_steps: int, *, timescale: int) -> float:
    """Fall as one over the square root of time: half the peak after three times `timescale`."""
    return math.sqrt(timescale / (timescale + step))


def warmup_stable_decay(
    step: int, num_steps: int, *, decay_fraction: float, end_factor: float
) -> float:
    """Stay at the peak, then fall along half a cosine to `end_factor` over the last fraction.

    Hu et al., 2024 (MiniCPM), https://arxiv.org/abs/2404.06395
    """
    decay_steps = max(1, round(decay_fraction * num_steps))
    progress = (step - (num_steps - decay_steps)) / decay_steps
    return 1.0 if progress <= 0.0 else _between(_half_cosine(progress), end_factor)


def rex(step: int, num_steps: int) -> float:
    """Fall slowly first and fast at the end, to 0 (Chen, Wolfe & Kyrillidis, 2021).

    With z the share of steps left, ``z / (1/2 + z/2)``. https://arxiv.org/abs/2107.04197
    """
    left = 1.0 - step / num_steps
    return left / (0.5 + 0.5 * left)


def one_cycle(
    step: int, num_steps: int, *, rise_fraction: float, start_factor: float, end_factor: float
) -> float:
    """Rise along half a cosine from `start_factor`, then fall along another to `end_factor`.

    Smith & Topin, 2018, as torch's `OneCycleLR` does it: the peak is update number
    ``rise_fraction * num_steps`` and the end the last update, not the one after it.
    https://arxiv.org/abs/1708.07120
    """
    peak, end = rise_fraction * num_steps - 1.0, num_steps - 1.0
    if step < peak:
        return _between(_half_cosine(1.0 - step / peak), start_factor)
    progress = min(1.0, (step - peak) / (end - peak)) if end > peak else 0.0
    return _between(_half_cosine(progress), end_factor)


def step(step: int, num_steps: int, *, step_size: int, gamma: float) -> float:
    """Multiply by `gamma` every `step_size` steps."""
    return float(gamma ** (step // step_size))


def multistep(step: int, num_steps: int, *, milestones: Sequence[int], gamma: float) -> float:
    """Multiply by `gamma` at each milestone, a step counted from the end of warm-up."""
    return float(gamma ** sum(milestone <= step for milestone in milestones))


def exponential(step: int, num_steps: int, *, step_size: int, gamma: float) -> float:
    """Multiply by `gamma` over every `step_size` steps, evenly: `step` without the stairs."""
    return float(gamma ** (step / step_size))


def plateau(
    step: int,
    num_steps: int,
    *,
    losses_before: Callable[[int], Sequence[float]],
    gamma: float,
    patience: int,
    threshold: float,
    end_factor: float,
) -> float:
    """Multiply by `gamma` when validation has not improved for more than `patience` times.

    The rule of torch's `ReduceLROnPlateau`: an improvement is a loss below the best one by more
    than the fraction `threshold`, and after each fall the counting starts anew.

    Args:
        step: Steps since the end of warm-up.
        num_steps: Not read; the curve depends on the losses alone.
        losses_before: Step -> losses of the validations made earlier, oldest first.
        gamma: Factor of one fall.
        patience: Validations without improvement that are let pass.
        threshold: Least relative improvement that counts.
        end_factor: The multiplier never falls below this.
    """
    multiplier, best, waited = 1.0, math.inf, 0
    for loss in losses_before(step):
        if loss < best * (1.0 - threshold):
            best, waited = loss, 0
        else:
            waited += 1
        if waited > patience:
            multiplier, waited = max(multiplier * gamma, end_factor), 0
    return multiplier


SHAPES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "constant_with_warmup": constant,
    "linear": linear,
    "cosine": cosine,
    "cosine_with_restarts": cosine_with_restarts,
    "cosine_with_min_lr": cosine_with_min_lr,
    "polynomial": polynomial,
    "inverse_sqrt": inverse_sqrt,
    "warmup_stable_decay": warmup_stable_decay,
    "rex": rex,
    "one_cycle": one_cycle,
    "step": step,
    "multistep": multistep,
    "exponential": exponential,
    "plateau": plateau,
}
"""By kind: (step, num_steps, options of its own) -> multiplier. Both count from the end of warm-up,
and step is in [0, num_steps]."""


def make_lr_multiplier(
    kind: str,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_start_factor: float = 0.0,
    **own: Any,
) -> Callable[[int], float]:
    """Return the multiplier as a function of the optimizer step, ready for torch's `LambdaLR`.

    Step s is the number of updates already made, so the first update uses s = 0 and the last
    s = total_steps - 1: a falling schedule reaches its end value only after the last update.
    During warm-up the multiplier rises in a straight line, ``f + (1 - f) * s / warmup_steps``
    with f = `warmup_start_factor`. The default 0 is the common rule, as in diffusers and
    transformers; it spends the first update at rate 0. A small f puts that update to use.

    Args:
        kind: A key of `SHAPES`.
        total_steps: Optimizer steps of the run; beyond them the last value holds.
        warmup_steps: Optimizer steps of warm-up, part of `total_steps` and fewer.
        warmup_start_factor: Multiplier of the first update when there is warm-up, in [0, 1].
        own: Options that only this kind has.
    """
    assert kind in SHAPES, kind
    assert 0 <= warmup_steps < total_steps, (warmup_steps, total_steps)
    assert 0.0 <= warmup_start_factor <= 1.0, warmup_start_factor
    shape = SHAPES[kind]
    num_steps = total_steps - warmup_steps
    shape(0, num_steps, **own)  # a wrong option stops here, not at the first update

    def multiplier(step: int) -> float:
        if step < warmup_steps:
            return warmup_start_factor + (1.0 - warmup_start_factor) * step / warmup_steps
        return max(0.0, shape(min(step - warmup_steps, num_steps), num_steps, **own))

    return multiplier


def _half_cosine(progress: float) -> float:
    """Return 1 at 0 and 0 at 1, level at both ends."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _between(factor: float, floor: float) -> float:
    """Squeeze [0, 1] into [floor, 1]."""
    return floor + (1.0 - floor) * factor

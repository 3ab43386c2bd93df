"""Learning-rate schedules: pure functions from optimizer step to a multiplier of the peak rate.

A shape says what happens after warm-up; warm-up is the same for all. A new schedule is one
function here, one line in `SHAPES` and one member of the config enum.
"""

from __future__ import annotations

import math
from collections.abc import Callable


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


SHAPES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
}
"""By kind: (step, num_steps, options of its own) -> multiplier. Both count from the end of warm-up,
and step is in [0, num_steps]."""


def make_lr_multiplier(
    kind: str,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_start_factor: float = 0.0,
    **own: float,
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

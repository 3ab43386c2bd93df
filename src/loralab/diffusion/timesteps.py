"""Which timesteps a batch is trained or validated at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def uniform_timesteps(generators: Sequence[torch.Generator], *, low: int, high: int) -> Tensor:
    """Draw one timestep per sample, each from its own generator.

    Args:
        generators: B CPU generators; each is advanced by one draw.
        low: Smallest timestep.
        high: One above the largest timestep, so that 0 and 1000 mean the whole usual schedule.

    Returns:
        (B,) int64 in [low, high), on the CPU.
    """
    assert 0 <= low < high, (low, high)
    draws = [torch.randint(low, high, (1,), generator=generator) for generator in generators]
    return torch.cat(draws)


def fixed_strata(num_strata: int, *, num_timesteps: int) -> Tensor:
    """Cut the schedule into equal strata and return the middle timestep of each.

    Validation looks at the same few timesteps every time, so that its loss is comparable.

    Args:
        num_strata: K, how many strata.
        num_timesteps: T, length of the schedule; at least K.

    Returns:
        (K,) int64, ascending, in [0, T).
    """
    assert 1 <= num_strata <= num_timesteps, (num_strata, num_timesteps)
    doubled_middles = (2 * torch.arange(num_strata) + 1) * num_timesteps
    return doubled_middles // (2 * num_strata)

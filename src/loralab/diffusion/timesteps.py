"""Which timesteps a batch is trained or validated at.

A timestep is drawn in two moves that combine freely: a position in [0, 1) for each sample
(`SPREADS`: how evenly the samples of a step cover it), then the timestep at that position
(`DENSITIES`: how often which timesteps come). However the positions are spread, each alone is
uniform, so every spread draws each timestep equally often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WindowPlace:
    """Where a micro-batch stands among the samples of its optimizer step.

    Attributes:
        first: Place of its first sample.
        size: Samples in the window, of all micro-batches and ranks.
        jitter_seed: Seed of what the whole window shares.
    """

    first: int
    size: int
    jitter_seed: int


@dataclass(frozen=True)
class TimestepSampler:
    """Draws one timestep for each sample.

    Attributes:
        low: Smallest timestep.
        high: One above the largest, so that 0 and 1000 mean the whole usual schedule.
        density: A key of `DENSITIES`.
        spread: A key of `SPREADS`.
        mean: Of ``"logit_normal"``: above 0 favours noisy timesteps.
        std: Of ``"logit_normal"``; above 0.
    """

    low: int = 0
    high: int = 1000
    density: str = "uniform"
    spread: str = "independent"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        assert 0 <= self.low < self.high, (self.low, self.high)
        assert self.density in DENSITIES, self.density
        assert self.spread in SPREADS, self.spread
        assert self.std > 0, self.std

    def __call__(
        self, generators: Sequence[torch.Generator], window: WindowPlace | None = None
    ) -> Tensor:
        """Return (B,) int64 timesteps in [low, high), on the CPU.

        Args:
            generators: B CPU generators; each is advanced by one draw, whatever the options, so
                that runs with other timesteps share their noise.
            window: The place of these samples; the spreads other than ``"independent"`` need it.
        """
        if self.density == "uniform" and self.spread == "independent":
            draws = [torch.randint(self.low, self.high, (1,), generator=g) for g in generators]
            return torch.cat(draws)
        positions = torch.cat([torch.rand(1, generator=generator) for generator in generators])
        positions = SPREADS[self.spread](positions, window)
        positions = DENSITIES[self.density](positions, self.mean, self.std)
        steps = (positions * (self.high - self.low)).long()
        return (self.low + steps).clamp(max=self.high - 1)  # a position may round to 1


def uniform(positions: Tensor, mean: float, std: float) -> Tensor:
    """Let every timestep come equally often."""
    return positions


def logit_normal(positions: Tensor, mean: float, std: float) -> Tensor:
    """Favour a middle: the logit of a timestep's place is normal.

    Esser et al., 2024, "Scaling Rectified Flow Transformers", section 3.1,
    https://arxiv.org/abs/2403.03206.
    """
    return torch.sigmoid(mean + std * torch.special.ndtri(positions))


def cubic(positions: Tensor, mean: float, std: float) -> Tensor:
    """Favour noisy timesteps: ``1 - u ** 3``.

    Mou et al., 2023, "T2I-Adapter", section 3.4, https://arxiv.org/abs/2302.08453.
    """
    return 1.0 - positions**3


DENSITIES: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "uniform": uniform,
    "logit_normal": logit_normal,
    "cubic": cubic,
}
"""((B,) uniform positions in [0, 1), mean, std) -> (B,) places in the range of timesteps."""


def independent(positions: Tensor, window: WindowPlace | None) -> Tensor:
    """Leave the positions as they were drawn, each by its sample alone."""
    return positions


def stratified(positions: Tensor, window: WindowPlace | None) -> Tensor:
    """Put each sample of a window of n into an n-th of the range of its own, in shuffled order."""
    places, shared = _places(positions, window)
    strata = torch.randperm(shared.size, generator=_generator(shared))[places]
    return (strata + positions) / shared.size


def antithetic(positions: Tensor, window: WindowPlace | None) -> Tensor:
    """Mirror every second sample of a window: u, then 1 - u. The window draws the u of a pair."""
    places, shared = _places(positions, window)
    pairs = torch.rand((shared.size + 1) // 2, generator=_generator(shared))[places // 2]
    return torch.where(places % 2 == 0, pairs, 1.0 - pairs)


SPREADS: dict[str, Callable[[Tensor, WindowPlace | None], Tensor]] = {
    "independent": independent,
    "stratified": stratified,
    "antithetic": antithetic,
}
"""((B,) uniform draws of the samples, their window) -> (B,) positions in [0, 1)."""


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


def _places(positions: Tensor, window: WindowPlace | None) -> tuple[Tensor, WindowPlace]:
    assert window is not None, "these timesteps depend on the place in the window"
    # A filler of a short window may stand behind its end.
    places = (window.first + torch.arange(len(positions))) % window.size
    return places, window


def _generator(window: WindowPlace) -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(window.jitter_seed)

"""A number for each timestep, kept in float32 whatever happens to the module around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class TimestepTable(nn.Module):
    """Looks a value up for each sample's timestep.

    Moving the module to another dtype leaves the values in float32; moving it to a device moves
    them. They are no part of a checkpoint.

    Attributes:
        values: (T,) float32.
    """

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        """Keep (T,) values, rounded to float32."""
        super().__init__()
        assert values.dim() == 1, values.shape
        self.register_buffer("values", values.to(torch.float32), persistent=False)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Return the values of (B,) int64 timesteps, (B,) float32."""
        return self.values[timesteps]

    def __len__(self) -> int:
        return self.values.shape[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let `.to()`, `.half()` and their kin change the device of the values, never the dtype."""
        values = self.values
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.values = values.to(device=self.values.device)
        return self

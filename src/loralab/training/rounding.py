"""Stochastic rounding: weights kept in bfloat16 lose nothing of their updates on the average.

Rounded to the nearest, an update below half the distance of two neighbours (1/256 of a weight) is
lost every time. Rounded up with a probability equal to how far it lies on the way, the expectation
is exact (Gupta et al. 2015, "Deep learning with limited numerical precision", equation 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from loralab.diffusion.noise import sample_generator

_DROPPED = 16  # bits of a float32 that a bfloat16 has no room for
_COUNT = "num_roundings"


def round_to_bfloat16(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return float32 values as bfloat16, each rounded to a neighbour by chance.

    A value goes to the neighbour farther from zero with the probability of its distance from the
    nearer one, over the distance of both; what bfloat16 holds already, stays.

    Args:
        values: Any shape, float32. What is not finite stays what it is.
        generator: On the CPU, so that the draws are the same on every device.
    """
    noise = torch.randint(
        0, 1 << _DROPPED, values.shape, dtype=torch.int32, generator=generator
    ).to(values.device)
    bits = (values.view(torch.int32) + noise) & (-1 << _DROPPED)  # cut off after a random carry
    rounded = bits.view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)


def with_stochastic_rounding(
    optimizer: Callable[..., Optimizer], *, seed: int
) -> Callable[..., Optimizer]:
    """Return a subclass of an optimizer for weights in bfloat16.

    It takes every parameter's step on a float32 copy, one parameter at a time, so the optimizer
    must keep all it knows by parameter. What it keeps, and gradients, are float32. The draws depend
    on the seed, the parameter's place and the number of its steps alone.
    """
    assert isinstance(optimizer, type)
    return type(optimizer.__name__, (_RoundedSteps, optimizer), {"rounding_seed": seed})


class _RoundedSteps(Optimizer):
    rounding_seed: int

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(params, *args, **kwargs)
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._places = {parameter: place for place, parameter in enumerate(parameters)}
        for parameter in parameters:
            parameter.grad_dtype = torch.float32  # micro-batches add up and are clipped exactly

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        try:
            for group in groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_one(group, parameter)
        finally:
            self.param_groups = groups
        return loss

    @torch.no_grad()
    def _step_one(self, group: dict[str, Any], parameter: nn.Parameter) -> None:
        state = self.state.pop(parameter, {})
        count = state.pop(_COUNT, 0)
        copy = nn.Parameter(parameter.float())
        copy.grad = parameter.grad
        if state:  # optimizers take an empty one for the sign of a first step
            self.state[copy] = state
        self.param_groups = [{**group, "params": [copy]}]
        super().step()
        place = f"parameter {self._places[parameter]}"
        generator = sample_generator(self.rounding_seed, count, place, "rounding")
        parameter.copy_(round_to_bfloat16(copy.detach(), generator))
        self.state[parameter] = {**self.state.pop(copy, {}), _COUNT: count + 1}

    def load_state_dict(self, state_dict: Any) -> None:
        """Take back a state as it was; torch would cast it to the weights' own bfloat16."""
        weights = {parameter: parameter.data for parameter in self._places}
        try:
            for parameter in weights:
                parameter.data = torch.empty(0, device=parameter.device)
            super().load_state_dict(state_dict)
        finally:
            for parameter, data in weights.items():
                parameter.data = data

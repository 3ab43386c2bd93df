"""Optimizers of our own making: combinations that no library has in one piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

OWN_GROUP = "_adamw"  # ending of the name of a group that is no matrix


class MuonWithAdamW(Optimizer):
    """Muon (Jordan et al. 2024) for matrices, AdamW for every other parameter.

    Muon's step of an (m, n) matrix is scaled by ``0.2 sqrt(max(m, n))`` (Liu et al. 2025, "Muon
    is scalable", equation 4), so that one rate and one decay suit both halves.
    """

    def __init__(
        self,
        params: Iterable[Mapping[str, Any]],
        lr: float = 1e-4,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        weight_decay: float = 0.01,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        """Split every group into its matrices and the rest.

        Args:
            params: Parameter groups; each may have ``lr``, ``weight_decay`` and ``name``.
            lr: Rate of groups without one.
            momentum: Of Muon.
            nesterov: Of Muon.
            ns_steps: Newton-Schulz iterations that orthogonalize a momentum.
            weight_decay: Decoupled, of both halves.
            betas: Of AdamW.
            eps: Of AdamW.
        """
        matrices, others = _split(params)
        muon = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        shared: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        self._halves: list[Optimizer] = []
        if matrices:
            self._halves.append(
                Muon(matrices, **shared, **muon, adjust_lr_fn="match_rms_adamw")  # type: ignore[arg-type]
            )
        if others:
            first, second = betas
            self._halves.append(AdamW(others, **shared, betas=(first, second), eps=eps))
        super().__init__([group for half in self._halves for group in half.param_groups], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of both halves; the groups and the state are this optimizer's own."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for half in self._halves:  # loading a state replaces both, so they are handed on each time
            is_muon = isinstance(half, Muon)
            half.state = self.state
            half.param_groups = [g for g in self.param_groups if ("ns_steps" in g) == is_muon]
            half.step()
        return loss


def _split(
    groups: Iterable[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the groups of matrices and those of everything else; empty ones are left out."""
    matrices, others = [], []
    for group in groups:
        parameters: list[Tensor] = list(group["params"])
        flat = [p for p in parameters if p.dim() == 2]
        rest = [p for p in parameters if p.dim() != 2]
        if flat:
            matrices.append({**group, "params": flat})
        if rest:
            name = f"{group.get('name', '')}{OWN_GROUP}"
            others.append({**group, "params": rest, "name": name})
    return matrices, others

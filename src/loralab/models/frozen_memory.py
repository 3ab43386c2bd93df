"""What a frozen network made of texts, kept in memory for the length of a run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from torch import Tensor, nn

Outputs = TypeVar("Outputs", bound="tuple[Tensor | None, ...]")


class FrozenMemory(Generic[Outputs]):
    """Outputs of a frozen network by text; the least recently used are forgotten first."""

    def __init__(self, limit_bytes: int) -> None:
        """Start empty; with a limit of 0 nothing is remembered."""
        assert limit_bytes >= 0, limit_bytes
        self.limit_bytes = limit_bytes
        self.num_bytes = 0
        self._outputs: OrderedDict[str, Outputs] = OrderedDict()
        self._state: Hashable = None

    def __len__(self) -> int:
        """Return the number of texts remembered."""
        return len(self._outputs)

    def renew(self, network: nn.Module) -> bool:
        """Forget everything unless the network is what it was; return whether it is frozen.

        To be called before a batch; ``recall`` may be used only after True.
        """
        state = frozen_state(network)
        if state is None or state != self._state:
            self._outputs.clear()
            self.num_bytes, self._state = 0, state
        return state is not None

    def recall(self, text: str, run: Callable[[], Outputs]) -> Outputs:
        """Return the outputs for a text, from memory or by running the network."""
        assert self._state is not None, "only a frozen network may be remembered"
        if text in self._outputs:
            self._outputs.move_to_end(text)
            return self._outputs[text]
        outputs = run()
        if _num_bytes(outputs) <= self.limit_bytes:
            self._outputs[text] = outputs
            self.num_bytes += _num_bytes(outputs)
        while self.num_bytes > self.limit_bytes:
            self.num_bytes -= _num_bytes(self._outputs.popitem(last=False)[1])
        return outputs


def frozen_state(network: nn.Module) -> Hashable:
    """Return what changes whenever a weight of a frozen network does; None if it is not frozen.

    Not frozen are networks with a trainable weight, and those with an adapter even if that is
    frozen, since it can be switched off: PEFT's layers wrap a ``base_layer``, LyCORIS replaces
    ``forward``. A weight that moves has another address, one that is changed in place another
    version, unless it is changed through ``.data``.
    """
    state = []
    for module in network.modules():
        if "base_layer" in module._modules or "forward" in vars(module):
            return None
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None:
                continue
            if tensor.requires_grad:
                return None
            state.append((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version))
    return tuple(state)


def _num_bytes(outputs: tuple[Tensor | None, ...]) -> int:
    return sum(tensor.nbytes for tensor in outputs if tensor is not None)

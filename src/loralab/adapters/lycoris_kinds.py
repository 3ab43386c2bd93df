"""Adapters that PEFT lacks, or has wrong: their layers come from LyCORIS, an optional package.

LyCORIS hooks ``forward`` itself; here its modules sit in a layer like PEFT's, so that everything
else (state, files, switching off) treats both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional

from loralab.adapters.layers import ADAPTER_NAME
from loralab.adapters.plan import LayerPlan
from loralab.adapters.spec import AdapterSpec
from loralab.adapters.weights import UP, ModuleWeights
from loralab.errors import AdapterError, Problem


class LycorisLayer(nn.Module, BaseTunerLayer):
    """A base layer and a LyCORIS module that forms the update of its weight."""

    adapter_layer_names = ("lycoris",)
    other_param_names = ()

    def __init__(self, base_layer: nn.Module, adapter: nn.Module, *, module_dropout: float) -> None:
        """Wrap; the adapter is on.

        Args:
            base_layer: A frozen Linear or Conv2d.
            adapter: LyCORIS' module for it.
            module_dropout: Probability that a forward pass in training leaves the adapter out.
        """
        super().__init__()
        self.base_layer = base_layer
        self.lycoris = nn.ModuleDict({ADAPTER_NAME: adapter})
        self.module_dropout = module_dropout
        self._disable_adapters = False
        self._active_adapter = ADAPTER_NAME
        self.merged_adapters: list[str] = []

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output plus the update's."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        if self.training and self.module_dropout and torch.rand(()) < self.module_dropout:
            return result
        delta = self._update().to(x.dtype)
        if isinstance(self.base_layer, nn.Conv2d):
            base = self.base_layer
            return result + functional.conv2d(
                x, delta, None, base.stride, base.padding, base.dilation, base.groups
            )
        return result + functional.linear(x, delta)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return LyCORIS' update of the base weight; of DyLoRA, the one at full rank."""
        was_training = self.training
        try:
            return self.eval()._update()
        finally:
            self.train(was_training)

    def module_weights(self) -> ModuleWeights:
        """Return what a file would hold."""
        state = dict(self._adapter.custom_state_dict() or self._adapter.state_dict())
        alpha = float(state.pop("alpha"))
        if UP in state and isinstance(self.base_layer, nn.Conv2d):  # DyLoRA's is a matrix
            state[UP] = state[UP].reshape(*state[UP].shape[:2], 1, 1)
        return ModuleWeights({name: tensor.detach() for name, tensor in state.items()}, alpha)

    @property
    def _adapter(self) -> Any:
        return self.lycoris[ADAPTER_NAME]

    def _update(self) -> Tensor:
        weight = self.base_layer.weight
        assert isinstance(weight, Tensor)
        options = {}
        if hasattr(self._adapter, "block_count"):  # DyLoRA: a rank by chance, all in evaluation
            count = self._adapter.block_count
            options["rank"] = int(torch.randint(count, ())) if self.training else count - 1
        delta, _ = self._adapter.get_diff_weight(1.0, weight.shape, weight.device, **options)
        assert isinstance(delta, Tensor)
        return delta


def attach(module: nn.Module, kind: str, spec: AdapterSpec, plans: Mapping[str, LayerPlan]) -> None:
    """Freeze a module and put LyCORIS' adapters on the planned layers.

    Raises:
        AdapterError: LyCORIS is not installed or cannot cut a layer.
    """
    module.requires_grad_(False)
    for name, plan in plans.items():
        base = module.get_submodule(name)
        adapter = _make(base, kind, spec, plan.rank, plan.alpha, name)
        assert isinstance(base.weight, Tensor)
        adapter.to(base.weight.device, torch.float32)
        layer = LycorisLayer(base, adapter, module_dropout=spec.module_dropout)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer)


def num_parameters(layer: nn.Module, kind: str, spec: AdapterSpec, rank: int) -> int:
    """Return the size of an adapter, made on the meta device."""
    adapter = _on_meta(layer, kind, spec, rank)
    return sum(parameter.numel() for parameter in adapter.parameters())


def block_size(layer: nn.Module, kind: str, spec: AdapterSpec, rank: int) -> int | None:
    """Return the size of the blocks that OFT and BOFT cut a layer into; None of other kinds.

    It may be another than the rank, which LyCORIS takes as a wish: 768 rows have no BOFT of 10.
    """
    blocks: Tensor | None = getattr(_on_meta(layer, kind, spec, rank), "oft_blocks", None)
    return None if blocks is None else int(blocks.shape[-1])


def _on_meta(layer: nn.Module, kind: str, spec: AdapterSpec, rank: int) -> nn.Module:
    with torch.device("meta"):
        return _make(_skeleton(layer), kind, spec, rank, float(rank), "a layer")


def _skeleton(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        kernel: Any = layer.kernel_size
        return nn.Conv2d(layer.in_channels, layer.out_channels, kernel, bias=False)
    assert isinstance(layer, nn.Linear)
    return nn.Linear(layer.in_features, layer.out_features, bias=False)


def _make(
    base: nn.Module, kind: str, spec: AdapterSpec, rank: int, alpha: float, name: str
) -> nn.Module:
    constructor, options = _constructor(kind, spec)
    try:
        adapter = constructor(
            name.replace(".", "_"),
            base,
            lora_dim=rank,
            alpha=float(torch.tensor(alpha, dtype=torch.float32, device="cpu")),
            rank_dropout=spec.rank_dropout,
            **options,
        )
    except ValueError as error:
        text = f"adapter.kind is {kind}, which cannot cut {name} with rank {rank}: {error}"
        raise AdapterError(Problem("adapter.rank", text)) from error
    assert isinstance(adapter, nn.Module)
    return adapter


def _constructor(kind: str, spec: AdapterSpec) -> tuple[Callable[..., Any], dict[str, Any]]:
    try:
        from lycoris.logging import logger
        from lycoris.modules.boft import ButterflyOFTModule
        from lycoris.modules.diag_oft import DiagOFTModule
        from lycoris.modules.dylora import DyLoraModule
        from lycoris.modules.locon import LoConModule
    except ImportError as error:
        text = (
            f"adapter.kind is {kind}, which needs LyCORIS; install it with "
            "pip install 'loralab[lycoris]'."
        )
        raise AdapterError(Problem("adapter.kind", text)) from error
    logger.setLevel("WARNING")  # it would tell how it cuts every width
    constraint = {"constraint": float(spec.options.get("constraint", 0.0))}
    table: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "tucker": (LoConModule, {"use_tucker": True}),
        # Blocks of one rank: with larger ones LyCORIS 4.1 trains at another scale than it saves.
        "dylora": (DyLoraModule, {"block_size": 1}),
        "oft": (DiagOFTModule, constraint),
        "boft": (ButterflyOFTModule, constraint),
    }
    return table[kind]

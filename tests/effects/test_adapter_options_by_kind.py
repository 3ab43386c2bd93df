"""Options that several kinds of adapter know, on each of these kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from loralab.adapters.layers import adapter_layers, adapter_parameters
from tests.effects.registry import effect
from tests.effects.runs import Tiny, TinyJob

pytestmark = pytest.mark.slow

UNET_ONLY = "adapter.text_encoder.enabled=false"
ATTENTION = "adapter.unet.targets=[attention]"
ONE_STEP = ("trainer.max_steps=1", "trainer.gradient_clip_val=null", "export.layouts=[]")


def fitted(tiny: Tiny, kind: str, *overrides: str) -> TinyJob:
    built = tiny.build(f"adapter.kind={kind}", UNET_ONLY, ATTENTION, "adapter.rank=4", *overrides)
    built.fit()
    return built


def gradients(job: TinyJob) -> dict[str, Tensor]:
    """Return the gradients of every layer after the first step, as one vector each."""
    found = {}
    for name, layer in adapter_layers(job.job.module.adapted["unet"]).items():
        values = [
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
            for _, p in adapter_parameters(layer)
        ]
        found[name] = torch.cat(values)
    return found


@effect("adapter.dropout")
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_dropout_changes_gradients_alike_each_time(tiny: Tiny, kind: str) -> None:
    plain = gradients(fitted(tiny, kind, *ONE_STEP))
    once, again = (
        gradients(fitted(tiny, kind, *ONE_STEP, "adapter.dropout=0.5")) for _ in range(2)
    )
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert all(not torch.allclose(once[name], plain[name], rtol=0.01) for name in once)


@effect("adapter.rank_dropout")
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "tucker", "oft"])
def test_rank_dropout_changes_gradients_alike_each_time(tiny: Tiny, kind: str) -> None:
    plain = gradients(fitted(tiny, kind, *ONE_STEP))
    once, again = (
        gradients(fitted(tiny, kind, *ONE_STEP, "adapter.rank_dropout=0.5")) for _ in range(2)
    )
    assert all(torch.equal(once[name], again[name]) for name in once)
    differing = [n for n in once if not torch.allclose(once[n], plain[n], rtol=0.01)]
    assert len(differing) > 0.8 * len(once)


@effect("adapter.module_dropout")
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "tucker", "dylora", "oft", "boft"])
def test_module_dropout_leaves_out_its_share_of_modules(tiny: Tiny, kind: str) -> None:
    def silent(*overrides: str) -> float:
        found = gradients(fitted(tiny, kind, *ONE_STEP, *overrides))
        return sum(not bool(gradient.any()) for gradient in found.values()) / len(found)

    assert silent() == 0
    assert 0.2 < silent("adapter.module_dropout=0.5") < 0.8


@effect("adapter.weight_norm.type", "adapter.weight_norm.max")
@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "tucker", "dylora"])
def test_no_update_of_any_kind_is_larger_than_the_limit(tiny: Tiny, kind: str) -> None:
    def norms(*overrides: str) -> list[float]:
        layers: dict[str, Any] = adapter_layers(
            fitted(tiny, kind, "export.layouts=[]", *overrides).job.module.adapted["unet"]
        )
        updates = [layer.get_delta_weight("default").detach() for layer in layers.values()]
        return [float(update.norm()) for update in updates]

    free = norms()
    limit = sorted(free)[len(free) // 2]
    held = norms("adapter.weight_norm.type=frobenius", f"adapter.weight_norm.max={limit}")
    assert max(free) > 1.01 * limit
    assert max(held) <= 1.001 * limit


@effect("adapter.rank_stabilized")
@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "tucker", "dylora"])
def test_rank_stabilized_files_of_any_kind_hold_the_alpha_of_their_scale(
    tiny: Tiny, kind: str
) -> None:
    run = tiny.run(
        f"adapter.kind={kind}", "adapter.rank_stabilized=true", "adapter.rank=2",
        "adapter.alpha=3", UNET_ONLY, ATTENTION, "export.layouts=[kohya]", "trainer.max_steps=1",
    )  # fmt: skip
    alphas = {round(float(t), 4) for key, t in run.adapter.items() if key.endswith(".alpha")}
    # 3 * sqrt(2), since readers divide by the rank; LoKr of two whole factors has no rank.
    assert 4.2426 in alphas
    assert alphas <= ({4.2426, 2.0} if kind == "lokr" else {4.2426})


@effect("adapter.constraint")
@pytest.mark.parametrize("kind", ["oft", "boft"])
def test_rotations_keep_within_the_constraint(tiny: Tiny, kind: str) -> None:
    def largest(*overrides: str) -> float:
        layers: dict[str, Any] = adapter_layers(
            fitted(tiny, kind, "export.layouts=[]", "optimizer.lr=0.1", *overrides)
            .job.module.adapted["unet"]
        )  # fmt: skip
        return max(
            float(
                layer.get_delta_weight("default").detach().norm()
                / layer.get_base_layer().weight.norm()
            )
            for layer in layers.values()
        )

    assert largest("adapter.constraint=1e-5") < 0.05 * largest()

"""AdamW by hand.

In the first step `up` is zero, so `down` has no gradient: it only decays. The step of `up` is the
rate times g / (|g| + eps), because both moments are those of a single gradient.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.effects.registry import effect
from tests.effects.runs import Tiny, TinyJob

LR = 0.01
ONE_STEP = "trainer.max_steps=1"


def fitted(tiny: Tiny, *overrides: str) -> TinyJob:
    built = tiny.build(*overrides)
    built.fit()
    return built


def factors(built: TinyJob, letter: str, part: str = "unet") -> list[Tensor]:
    """Return the parameters of the `lora_A` or `lora_B` factors of a part."""
    module = built.job.module.adapted[part]
    return [p for name, p in module.named_parameters() if f"lora_{letter}." in name]


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@effect("optimizer.lr")
@pytest.mark.parametrize("rate", [0.01, 0.002])
def test_the_first_step_is_as_long_as_the_rate(tiny: Tiny, rate: float) -> None:
    built = fitted(tiny, f"optimizer.lr={rate}", ONE_STEP)
    for part, expected in (("unet", rate), ("text_encoder", rate / 2)):
        steps = flat(factors(built, "B", part)).abs()
        assert float(steps.median()) == pytest.approx(expected, rel=1e-3)
        assert float(steps.max()) <= expected * (1 + 1e-6)


@effect("optimizer.weight_decay")
def test_without_a_gradient_weights_shrink_by_rate_times_decay(tiny: Tiny) -> None:
    plain, decayed = (
        flat(factors(fitted(tiny, f"optimizer.weight_decay={decay}", ONE_STEP), "A"))
        for decay in (0.0, 0.5)
    )
    assert float(plain.abs().max()) > 0.1
    torch.testing.assert_close(decayed, plain * (1 - LR * 0.5))


@effect("optimizer.eps")
def test_a_large_eps_makes_the_step_follow_the_gradient(tiny: Tiny) -> None:
    built = fitted(tiny, "optimizer.eps=1", ONE_STEP)
    parameters = factors(built, "B")
    gradient = flat([p.grad for p in parameters if p.grad is not None])
    assert float(gradient.abs().max()) > 1e-3
    expected = -LR * gradient / (gradient.abs() + 1)
    torch.testing.assert_close(flat(parameters), expected, rtol=1e-4, atol=1e-9)


@effect("optimizer.betas")
def test_without_betas_every_step_is_the_sign_of_its_gradient(tiny: Tiny) -> None:
    two_steps = ("trainer.max_steps=2", "optimizer.weight_decay=0")
    built = fitted(tiny, "optimizer.betas=[0.0, 0.0]", *two_steps)
    steps = flat(factors(built, "B")) / LR
    whole = (steps - steps.round()).abs() < 0.01  # two steps of +1 or -1 each
    assert float(whole.float().mean()) > 0.98
    assert {-2.0, 0.0, 2.0} >= set(steps[whole].round().tolist())
    remembered = flat(factors(fitted(tiny, *two_steps), "B")) / LR
    assert float(((remembered - remembered.round()).abs() < 0.01).float().mean()) < 0.5


@effect("optimizer.fused")
def test_the_fused_step_is_the_same_step(tiny: Tiny) -> None:
    fused, plain = (fitted(tiny, f"optimizer.fused={word}") for word in ("true", "false"))
    for built, expected in ((fused, True), (plain, False)):
        (optimizer,) = built.job.trainer.optimizers
        assert {group["fused"] for group in optimizer.param_groups} == {expected}
    torch.testing.assert_close(
        flat(factors(fused, "B")), flat(factors(plain, "B")), rtol=1e-3, atol=1e-6
    )

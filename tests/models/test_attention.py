"""Backends of attention: the same result and gradients, or a refusal where one cannot run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loralab.errors import ModelError
from loralab.models.attention import attention_problem
from loralab.models.registry import ATTENTION_KINDS, load_family


@pytest.mark.parametrize("kind", ["sdpa_math", "sdpa_flash", "eager", "sliced"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_backend_gives_the_result_and_gradients_of_sdpa(
    folder: Path, kind: str, checkpointing: bool
) -> None:
    results = []
    torch.manual_seed(0)
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([100, 700])
    for chosen in ("sdpa", kind):
        family = load_family("sd1", folder, attention=chosen, gradient_checkpointing=checkpointing)
        weight = (
            family.parts["unet"]
            .get_parameter("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight")
            .requires_grad_(True)
        )
        family.denoiser.train()
        prediction = family.denoiser(noisy, timesteps, family.conditioner.encode(["red", "blue"]))
        prediction.square().mean().backward()
        results.append((prediction.detach(), weight.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["sdpa_efficient", "xformers"])
def test_what_cannot_run_on_a_cpu_is_refused_in_one_sentence(folder: Path, kind: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_family("sd1", folder, attention=kind)
    (problem,) = caught.value.problems
    assert problem.key == "model.attention"
    assert problem.message.startswith(
        f"model.attention is {kind}, which cannot run on cpu in float32"
    )
    assert problem.message.endswith("use sdpa.")


@pytest.mark.parametrize("kind", ATTENTION_KINDS)
def test_the_probe_answers_for_every_backend(kind: str) -> None:
    problem = attention_problem(kind, dtype=torch.float32, device="cpu")
    assert (problem is None) == (kind not in ("sdpa_efficient", "xformers"))

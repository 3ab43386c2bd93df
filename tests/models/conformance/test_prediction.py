"""What the UNet is asked and answers: compared with diffusers' own pipeline of the family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loralab.models.family import ModelFamily
from loralab.models.registry import load_family
from loralab.models.sampling import prompt_noise, sample_images
from tests.models.conformance.cases import Case, Record

HEIGHT, WIDTH = 64, 96
SIZES = torch.tensor([[HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]])
TOLERANCE = 2e-6  # float32; the two differ in how many captions run at once


@torch.no_grad()
def unet_call(case: Case, folder: Path, prompt: str, **options: Any) -> dict[str, Any]:
    """Return what the pipeline gives its UNet in the first step, and what comes out."""
    pipeline = case.load_pipeline(folder)
    seen: dict[str, Any] = {}

    def keep(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen.update(kwargs, sample=args[0], timestep=args[1], prediction=output[0])

    pipeline.unet.register_forward_hook(keep, with_kwargs=True)
    pipeline(
        prompt,
        height=HEIGHT,
        width=WIDTH,
        guidance_scale=1.0,
        num_inference_steps=1,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **options,
    )
    return seen


@torch.no_grad()
def predict(family: ModelFamily, noisy: Tensor, timestep: Tensor, prompt: str) -> Tensor:
    conditioning = family.conditioner.encode([prompt], sizes=SIZES)
    return family.denoiser(noisy, timestep.reshape(1), conditioning)


@pytest.mark.parametrize("prompt", ["red circle, white ground", ""])
def test_the_prediction_is_that_of_the_pipelines_own_unet_call(
    case: Case, folder: Path, family: ModelFamily, prompt: str, record_property: Record
) -> None:
    call = unet_call(case, folder, prompt)
    found = predict(family, call["sample"], call["timestep"], prompt)
    difference = (found - call["prediction"]).abs().max().item()
    record_property("prediction", difference)
    assert difference <= TOLERANCE
    assert found.std() > 0.1


def test_the_context_is_the_pipelines(case: Case, folder: Path, family: ModelFamily) -> None:
    call = unet_call(case, folder, "red circle")
    found = family.conditioner.encode(["red circle"], sizes=SIZES)
    assert found.hidden_states.shape == (1, 77, case.width)
    torch.testing.assert_close(
        found.hidden_states, call["encoder_hidden_states"], rtol=0, atol=TOLERANCE
    )
    added = call.get("added_cond_kwargs") or {}
    for mine, theirs in ((found.pooled, "text_embeds"), (found.time_ids, "time_ids")):
        assert (mine is None) == (theirs not in added)
        if mine is not None:
            torch.testing.assert_close(mine.float(), added[theirs], rtol=0, atol=TOLERANCE)


def test_each_caption_has_its_own_states(case: Case, family: ModelFamily) -> None:
    captions = ["red circle", "", "blue square, grey ground"]
    found = family.conditioner.encode(captions, sizes=SIZES.expand(3, -1))
    assert found.hidden_states.shape == (3, 77, case.width)
    assert (None if found.pooled is None else found.pooled.shape[1]) == case.pooled_width
    alone = family.conditioner.encode(captions[2:], sizes=SIZES)
    assert torch.equal(found.hidden_states[2:], alone.hidden_states)
    assert not torch.allclose(found.hidden_states[0], found.hidden_states[1], atol=0.1)


def test_sizes_reach_the_families_that_read_them_and_no_other(
    case: Case, folder: Path, family: ModelFamily
) -> None:
    noisy, timestep = torch.randn(1, 4, 8, 12), torch.tensor([300])
    other = torch.tensor([[900, 700, 5, 7, HEIGHT, WIDTH]])
    with torch.no_grad():
        plain, cut = (
            family.denoiser(noisy, timestep, family.conditioner.encode(["red"], sizes=sizes))
            for sizes in (SIZES, other)
        )
        fixed_family = load_family(case.name, folder, fixed_sizes=SIZES[0].tolist())
        fixed = predict(fixed_family, noisy, timestep, "red")
        told = fixed_family.denoiser(
            noisy, timestep, fixed_family.conditioner.encode(["red"], sizes=other)
        )
    assert torch.equal(plain, cut) == (not family.spec.reads_sizes)
    assert torch.equal(told, fixed)
    assert torch.equal(fixed, plain)


def test_previews_are_the_pipelines_pictures(case: Case, folder: Path, family: ModelFamily) -> None:
    from diffusers import DDIMScheduler

    prompts = ["red circle", "blue, stripes"]
    found = sample_images(
        denoiser=family.denoiser,
        conditioner=family.conditioner,
        codec=family.load_codec(),
        schedule_config=family.schedule_config,
        prompts=prompts,
        negative_prompt="grey",
        num_steps=4,
        guidance_scale=5.0,
        seed=3,
        height=HEIGHT,
        width=WIDTH,
        latent_channels=4,
        vae_factor=8,
    )
    pipeline = case.load_pipeline(folder)
    pipeline.scheduler = DDIMScheduler.from_config(dict(family.schedule_config))
    noise = [prompt_noise((4, 8, 12), seed=3, index=index) for index in range(2)]
    wanted = pipeline(
        prompts,
        negative_prompt=["grey"] * 2,
        latents=torch.stack(noise),
        height=HEIGHT,
        width=WIDTH,
        guidance_scale=5.0,
        num_inference_steps=4,
        output_type="pt",
    ).images
    assert found.std() > 0.01
    assert (found - wanted).abs().max() < 1e-4

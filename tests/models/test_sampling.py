from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from loralab.models.family import ModelFamily
from loralab.models.registry import load_family
from loralab.models.sampling import prompt_noise, sample_images
from tests.tiny import make_tiny_sd1

PROMPTS = ["red, circle", "blue, square, white ground"]


def sample(family: ModelFamily, **changes: Any) -> Tensor:
    options: dict[str, Any] = {
        "prompts": PROMPTS,
        "negative_prompt": "stripes",
        "num_steps": 4,
        "guidance_scale": 3.0,
        "seed": 5,
        "height": 64,
        "width": 96,
    }
    return sample_images(
        denoiser=family.denoiser,
        conditioner=family.conditioner,
        codec=family.load_codec(),
        schedule_config=family.schedule_config,
        latent_channels=family.facts.latent_channels,
        vae_factor=family.facts.vae_factor,
        **(options | changes),
    )


@pytest.mark.parity
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_pictures_are_those_of_the_librarys_pipeline(
    tmp_path: Path, prediction_type: str, guidance_scale: float
) -> None:
    folder = make_tiny_sd1(tmp_path, prediction_type=prediction_type)
    family = load_family("sd1", folder)
    got = sample(family, guidance_scale=guidance_scale)

    pipeline = StableDiffusionPipeline(
        vae=family.load_codec().vae,
        text_encoder=family.conditioner.encoders[0].model,
        tokenizer=family.conditioner.encoders[0].tokenizer,
        unet=family.denoiser.unet,
        scheduler=DDIMScheduler.from_config(family.schedule_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = [prompt_noise((4, 8, 12), seed=5, index=index) for index in range(len(PROMPTS))]
    wanted = pipeline(
        PROMPTS,
        negative_prompt=["stripes"] * len(PROMPTS),
        latents=torch.stack(noise),
        guidance_scale=guidance_scale,
        num_inference_steps=4,
        output_type="pt",
    ).images
    assert got.shape == (2, 3, 64, 96)
    assert got.std() > 0.01
    assert (got - wanted).abs().max() < 1e-4


def test_pictures_do_not_depend_on_the_global_generator(family: ModelFamily) -> None:
    torch.manual_seed(1)
    first = sample(family)
    torch.manual_seed(2)
    torch.testing.assert_close(first, sample(family), rtol=0, atol=0)
    assert not torch.allclose(first, sample(family, seed=6), atol=1e-3)


def test_pictures_depend_on_prompt_negative_prompt_and_guidance(family: ModelFamily) -> None:
    first = sample(family)
    for changes in (
        {"prompts": ["yellow", "green"]},
        {"negative_prompt": "circle"},
        {"guidance_scale": 6.0},
    ):
        assert not torch.allclose(first, sample(family, **changes), atol=1e-3)


def test_prompts_beyond_one_batch_give_the_same_pictures(family: ModelFamily) -> None:
    prompts = ["red", "green", "blue"]
    together = sample(family, prompts=prompts)
    in_pairs = sample(family, prompts=prompts, prompts_at_once=2)
    torch.testing.assert_close(together, in_pairs, rtol=1e-4, atol=1e-4)


def test_no_prompts_give_no_pictures(family: ModelFamily) -> None:
    assert sample(family, prompts=[]).shape == (0, 3, 64, 96)


def test_every_submodule_gets_its_own_mode_back(family: ModelFamily) -> None:
    family.denoiser.train()
    frozen = family.denoiser.unet.get_submodule("mid_block")
    frozen.eval()
    before = [module.training for module in family.denoiser.modules()]
    sample(family)
    assert [module.training for module in family.denoiser.modules()] == before
    assert not frozen.training
    assert family.denoiser.training


def test_dropout_is_off_while_sampling(family: ModelFamily) -> None:
    unet = family.denoiser.unet
    unet.get_submodule("mid_block.resnets.0").dropout = torch.nn.Dropout(0.9)
    family.denoiser.train()
    torch.testing.assert_close(sample(family), sample(family), rtol=0, atol=0)


def test_a_scheduler_config_without_clip_sample_does_not_clip_latents(family: ModelFamily) -> None:
    wanted = sample(family)
    config = {k: v for k, v in family.schedule_config.items() if k != "clip_sample"}
    family.schedule_config = config
    torch.testing.assert_close(sample(family), wanted, rtol=0, atol=0)

"""The embedded demo as it is shipped: weights, images, captions, credits."""

import hashlib
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from loralab.config.store import conf_dir
from loralab.demo import base_dir, images_dir

TRIGGER = "cyanotype"
SPLITS = ("train", "validation")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(base_dir(), safety_checker=None)


@pytest.fixture(scope="module")
def vae(pipeline) -> AutoencoderKL:
    return pipeline.vae.float()


def list_images(split: str) -> list[Path]:
    return sorted(images_dir(split).glob("*.png"))


def read_caption(path: Path) -> list[str]:
    return [tag.strip() for tag in path.with_suffix(".txt").read_text("utf-8").split(",")]


def open_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


def read_pixels(path: Path) -> Tensor:
    """Return (1, 3, H, W) in [-1, 1]."""
    pixels = np.asarray(open_image(path), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]


def test_base_loads_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = StableDiffusionPipeline.from_pretrained(base_dir(), safety_checker=None)
    assert pipeline.unet.config.cross_attention_dim == pipeline.text_encoder.config.hidden_size


def test_tokenizer_has_known_length_and_ids(pipeline):
    tokenizer = pipeline.tokenizer
    assert len(tokenizer) == pipeline.text_encoder.config.vocab_size == 2814
    assert tokenizer.model_max_length == 77
    ids = tokenizer("noto, rocket").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<|startoftext|>",
        "noto</w>",
        ",</w>",
        "rocket</w>",
        "<|endoftext|>",
    ]
    assert (ids[0], ids[-1]) == (2812, 2813)


def test_vae_reduces_by_four(pipeline, vae):
    assert pipeline.vae_scale_factor == 4
    latents = vae.encode(torch.zeros(1, 3, 80, 48)).latent_dist.mean
    assert latents.shape == (1, 4, 20, 12)


@torch.no_grad()
def test_latents_of_training_images_have_unit_scale(vae):
    assert vae.config.scaling_factor == 1.0
    images = [read_pixels(path) for path in list_images("train")]
    square = torch.cat([image for image in images if image.shape[-2:] == (64, 64)])
    latents = vae.encode(square).latent_dist.mean
    deviations = latents.std((0, 2, 3))
    assert ((deviations > 0.5) & (deviations < 2)).all(), deviations


@torch.no_grad()
@pytest.mark.parametrize("split", SPLITS)
def test_vae_round_trip_exceeds_24_db(vae, split):
    ratios = []
    for path in list_images(split):
        pixels = read_pixels(path)
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        mean_squared_error = ((decoded - pixels) / 2).square().mean()
        ratios.append(float(-10 * mean_squared_error.log10()))
    assert np.mean(ratios) > 24, ratios


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(64, 64), (80, 48), (48, 80)])
def test_pipeline_makes_an_image_that_is_not_flat(pipeline, height, width):
    generator = torch.Generator().manual_seed(0)
    pipeline.to(torch.float32).set_progress_bar_config(disable=True)
    result = pipeline(
        "noto, red heart, heart",
        height=height,
        width=width,
        num_inference_steps=8,
        guidance_scale=4.5,
        generator=generator,
        output_type="np",
    )
    [image] = result.images
    assert image.shape == (height, width, 3)
    assert image.std() > 0.1


@pytest.mark.parametrize(("split", "fewest", "most"), [("train", 48, 60), ("validation", 16, 24)])
def test_every_image_has_a_caption_that_starts_with_the_trigger(split, fewest, most):
    images = list_images(split)
    assert fewest <= len(images) <= most
    assert len(list(images_dir(split).glob("*.txt"))) == len(images)
    for path in images:
        trigger, *tags = read_caption(path)
        assert trigger == TRIGGER
        assert tags
        assert all(tags)


def test_train_and_validation_share_no_subject_and_no_pixels():
    subjects = [{read_caption(path)[1] for path in list_images(split)} for split in SPLITS]
    assert len(subjects[0]) == len(list_images("train"))
    assert not subjects[0] & subjects[1]
    hashes = [
        {hashlib.sha256(open_image(path).tobytes()).hexdigest() for path in list_images(split)}
        for split in SPLITS
    ]
    assert not hashes[0] & hashes[1]


def test_images_have_several_aspect_ratios_and_a_white_background():
    images = [open_image(path) for split in SPLITS for path in list_images(split)]
    sizes = [image.size for image in images]
    assert set(sizes) == {(64, 64), (48, 80), (80, 48)}
    assert 0.5 < sizes.count((64, 64)) / len(sizes) < 0.7
    for image in images:
        assert image.mode == "RGB"
        corners = np.asarray(image)[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert np.median(corners) > 250, image.filename


def test_preview_subjects_are_of_the_validation_set():
    held_out = {read_caption(path)[1] for path in list_images("validation")}
    prompts = OmegaConf.load(conf_dir() / "preview" / "demo.yaml").prompts
    assert len(prompts) >= 4
    for prompt in prompts:
        trigger, subject, *_ = prompt.split(", ")
        assert trigger == TRIGGER
        assert subject in held_out


def test_files_stay_small():
    assert sum_bytes(base_dir()) <= 14_000_000
    assert sum_bytes(images_dir("train").parent) <= 600_000


def sum_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_credits_name_every_source_and_every_licence_file():
    folder = base_dir().parent
    text = (folder / "CREDITS.md").read_text("utf-8")
    for source in ("Noto Emoji", "Twemoji", "Fluent Emoji High Contrast", "emojibase-data"):
        assert source in text
    for package in ("emoji-datasource-google` 16.0.0", "emoji-datasource-twitter` 16.0.0"):
        assert package in text
    named = set(re.findall(r"licenses/([\w.-]+\.txt)", text))
    assert named == {path.name for path in (folder / "licenses").iterdir()}


def test_no_file_of_the_base_names_a_folder_of_the_machine():
    for path in base_dir().rglob("*.json"):
        assert "_name_or_path" not in path.read_text("utf-8"), path.name


def test_importing_the_demo_does_not_import_torch():
    code = "import sys, loralab.demo; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

"""The parts of the demo's pretraining that run without the npm packages."""

import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from transformers import CLIPTokenizer

from loralab.demo import base_dir, concepts
from loralab.demo.captions import compose_caption, invent_word
from loralab.demo.denoiser import (
    Batch,
    _denoising_loss,
    build_objective,
    build_scheduler,
    build_text_encoder,
    build_unet,
)
from loralab.demo.sources import caption_parts, duotone, fit, grayscale
from loralab.demo.training import Progress, cosine_decay, load_checkpoint, save_checkpoint
from loralab.demo.vae import build_vae, measure_psnr, normalize_latents

PARTS = ("polar bear", "bear", "animal")


@pytest.fixture
def icon() -> Image.Image:
    """A red square of 20 x 30 pixels on a transparent tile."""
    tile = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    tile.paste((200, 30, 30, 255), (10, 20, 30, 50))
    return tile


def test_concepts_are_three_to_six_hundred_and_no_family_of_the_subject_demo():
    labels = concepts.list_concepts()
    assert 300 <= len(labels) <= 600
    subject = {label.strip() for label in concepts.SUBJECT_FAMILY.split(";")}
    assert len(subject) == 12
    assert not subject & labels.keys()
    train, validation = (concepts.list_canvases(split) for split in ("train", "validation"))
    assert len(validation) == 24
    assert not train.keys() & validation.keys()
    assert {*train, *validation} <= labels.keys()


def test_captions_have_the_style_word_in_every_place_and_drop_tags():
    draw = random.Random(0)
    captions = [compose_caption(PARTS, "twemoji", draw).split(", ") for _ in range(4000)]
    places = {caption.index("twemoji") for caption in captions if "twemoji" in caption}
    assert places == {0, 1, 2, 3}
    share = sum("twemoji" in caption for caption in captions) / len(captions)
    assert share == pytest.approx(0.9 * 0.8, abs=0.02)
    assert sum(caption == [""] for caption in captions) / 4000 == pytest.approx(0.1, abs=0.02)
    assert {"bear", "animal"} - set(captions[0]) or {"bear", "animal"} - set(captions[1])
    orders = {tuple(word for word in caption if word in PARTS) for caption in captions}
    assert {PARTS, ("animal", "bear", "polar bear")} <= orders
    assert invent_word(random.Random(3)) == invent_word(random.Random(3))


@pytest.mark.parametrize(
    ("label", "category", "tags", "parts"),
    [
        ("hot dog", "food", [], ("hot dog", "food")),
        ("wine glass", "drink", ["bar", "beverage"], ("wine glass", "glass", "drink", "beverage")),
        ("cat face", "animal", [], ("cat", "animal")),
        ("cloud with lightning", "sky", [], ("cloud with lightning", "cloud", "sky")),
    ],
)
def test_caption_parts_are_name_head_category_and_one_tag(label, category, tags, parts):
    assert caption_parts(label, category, tags) == parts


def test_an_icon_is_fitted_printed_and_made_gray(icon):
    wide = fit(icon, 48, 80)
    assert wide.size == (80, 48)
    gray = np.asarray(grayscale(wide))
    assert (gray == gray[..., :1]).all()
    print_ = np.asarray(duotone(wide, ((0, 0, 100), (50, 100, 200))))
    assert print_[0, 0].tolist() == [255, 255, 255]
    assert print_[24, 40].tolist() == [0, 0, 100]  # the darkest tone takes the ink


def test_a_checkpoint_restores_parts_step_and_cost(tmp_path):
    part = torch.nn.Linear(2, 2)
    progress = Progress(earlier_minutes=7.0)
    for step in progress.steps(5):
        if step == 2:
            break
    save_checkpoint(tmp_path / "a.pt", progress, part=part)
    other = torch.nn.Linear(2, 2)
    loaded = load_checkpoint(tmp_path / "a.pt", part=other)
    assert (loaded.step, list(loaded.steps(5))) == (3, [3, 4])
    assert loaded.cpu_minutes() > 7.0
    assert torch.equal(other.weight, part.weight)
    assert load_checkpoint(tmp_path / "none.pt", part=other).step == 0


def test_a_checkpoint_survives_a_kill_while_it_is_written(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path; from loralab.demo.training import *\n"
        "part = torch.nn.Linear(600, 600); progress = Progress()\n"
        "for step in progress.steps(10**6):\n"
        "    save_checkpoint(Path(sys.argv[1]), progress, part=part); print(step, flush=True)\n"
    )
    path = tmp_path / "a.pt"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(4)]
        os.kill(process.pid, signal.SIGKILL)
    assert load_checkpoint(path, part=torch.nn.Linear(600, 600)).step > int(lines[-1])


def test_the_rate_warms_up_stays_and_falls_to_two_percent():
    factors = [cosine_decay(step, 100, warmup_steps=10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:41] == [1.0] * 32
    assert factors[70] == pytest.approx(0.02 + 0.98 / 2)
    assert cosine_decay(100, 100, warmup_steps=10) == pytest.approx(0.02)


def test_normalised_latents_have_unit_scale_and_decode_as_before():
    torch.manual_seed(0)
    vae, images = build_vae().eval(), torch.rand(8, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        before = vae.encode(images).latent_dist
        decoded = vae.decode(before.mean).sample
        normalize_latents(vae, images)
        after = vae.encode(images).latent_dist
        torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(4))
        torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            after.std / before.std,
            (1 / before.mean.std((0, 2, 3)))[:, None, None].expand(8, 4, 8, 8),
        )
        torch.testing.assert_close(vae.decode(after.mean).sample, decoded, atol=1e-4, rtol=1e-3)
    assert measure_psnr(vae, decoded.clamp(-1, 1)) > 0


def test_the_pretraining_loss_is_min_snr_weighted_noise_at_spread_timesteps():
    """A denoiser that answers zero is wrong by the noise itself, whose variance is 1."""
    unet, seen = build_unet(), []
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    tokenizer = CLIPTokenizer.from_pretrained(base_dir() / "tokenizer")
    model = torch.nn.ModuleDict({"unet": unet, "text": build_text_encoder(tokenizer)})
    scheduler = build_scheduler()
    objective = build_objective(scheduler)
    batch = Batch(torch.zeros(100, 4, 16, 16), torch.zeros(100, 77, dtype=torch.int64))
    with torch.no_grad():
        losses = [float(_denoising_loss(model, objective, batch, 0, step)) for step in (3, 3, 4)]
    assert torch.equal(seen[0] // 10, torch.arange(100))  # one in each of 100 strata
    alphas = DDPMScheduler.from_config(scheduler.config).alphas_cumprod[seen[0]].double()
    snr = alphas / (1 - alphas)
    expected = (snr.clamp(max=5) / snr).mean()  # Hang et al. 2023: min(SNR, 5) / SNR
    assert losses[0] == pytest.approx(float(expected), rel=0.02)
    assert losses[0] == losses[1] != losses[2]

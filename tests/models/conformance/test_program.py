"""The whole program on each family: preflight, training, files that diffusers draws alike with."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from loralab.models.sampling import prompt_noise, sample_images
from loralab.models.specs import family_spec
from tests.effects.runs import Tiny
from tests.models.conformance.cases import Case, Record
from tests.tiny import make_images

ROOT = Path(__file__).parents[3]
PROMPT = "red circle, white ground"


@pytest.fixture(scope="session")
def tiny(case: Case, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp(f"program-{case.name}")
    make_images(root / "images", count=12)
    return Tiny(root, base=folder, images=root / "images")


def overrides(case: Case) -> list[str]:
    return [
        f"model.family={case.name}",
        "model.clip_skip=null",
        "adapter.unet.targets=[sd_scripts]",
        "adapter.text_encoder.targets=[sd_scripts]",
        "adapter.alpha=5",
    ]


def draw(case: Case, folder: Path, file: Path | None, schedule: Any, seed: int = 0) -> Tensor:
    """Return what diffusers draws (1,3,H,W), with an adapter file or without."""
    pipeline = case.load_pipeline(folder)
    if file is not None:
        pipeline.load_lora_weights(file.parent, weight_name=file.name)
    pipeline.scheduler = DDIMScheduler.from_config(dict(schedule), clip_sample=False)
    images: Tensor = pipeline(
        [PROMPT],
        negative_prompt=[""],
        latents=prompt_noise((4, 8, 8), seed=seed, index=0)[None],
        height=64,
        width=64,
        guidance_scale=5.0,
        num_inference_steps=4,
        output_type="pt",
    ).images
    return images


def test_preflight_counts_the_modules_of_every_part(case: Case, tiny: Tiny) -> None:
    survey = tiny.survey(*overrides(case))
    parts = {name: part.num_modules for name, part in survey.parts.items()}
    assert {name: parts[name] for name in case.text_modules} == case.text_modules
    assert set(parts) == {"unet", *family_spec(case.name).text_parts}


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_trained_files_draw_in_diffusers_what_the_run_draws(
    case: Case, folder: Path, tiny: Tiny, layout: str, record_property: Record
) -> None:
    built = tiny.build(*overrides(case), "optimizer.lr=0.05", f"export.layouts=[{layout}]")
    built.fit()
    (file,) = (path for path in built.job.writer.write("", 3) if path.suffix == ".safetensors")
    module = built.job.module
    found = sample_images(
        denoiser=module.denoiser,
        conditioner=module.conditioner,
        codec=module.codec(),
        schedule_config=module.family.schedule_config,
        prompts=[PROMPT],
        negative_prompt="",
        num_steps=4,
        guidance_scale=5.0,
        seed=0,
        height=64,
        width=64,
        latent_channels=4,
        vae_factor=8,
    )
    schedule = module.family.schedule_config
    with_file, without = (draw(case, folder, path, schedule) for path in (file, None))
    difference = (found - with_file).abs().max().item()
    record_property(layout, difference)
    assert difference < 2e-4
    assert (with_file - without).abs().max() > 0.02, "the adapter changes the picture"


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", "zero_terminal_snr"])
def test_a_run_in_a_new_process_previews_what_diffusers_draws(
    case: Case,
    folder: Path,
    tiny: Tiny,
    tmp_path: Path,
    ending: str,
    record_property: Record,
) -> None:
    prediction = "v_prediction" if ending else "null"
    command = [
        sys.executable, "train.py", *tiny._base(), *overrides(case), "optimizer.lr=0.05",
        "logger=tensorboard", "export.layouts=[kohya]", "preview.steps=4",
        "preview.guidance_scale=5", f"preview.prompts=['{PROMPT}']", f"output_dir={tmp_path}",
        f"model.prediction_type={prediction}", f"objective.zero_terminal_snr={bool(ending)}",
        "run_id=run",
    ]  # fmt: skip
    given: dict[str, str] = {}
    for word in command[2:]:
        given[word.split("=")[0]] = word  # later ones win
    done = subprocess.run(
        [*command[:2], *given.values()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "tiny" / "run"
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    shown = events.Images(f"preview/{PROMPT}")[-1]
    assert shown.step == 3
    pixels = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)).convert("RGB"))
    schedule = dict(tiny.survey(*overrides(case)).facts.schedule_config)
    if ending:
        schedule |= {
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        }
    (file,) = (run / "adapters").glob("tiny.safetensors")
    drawn = draw(case, folder, file, schedule)[0].permute(1, 2, 0).numpy() * 255
    difference = float(np.abs(pixels[:, 64:] - drawn).max())
    record_property(ending or "epsilon", difference)
    assert difference <= 0.51, "eight bits"
    assert np.abs(pixels[:, :64] - drawn).max() > 5, "the base, on the left, draws something else"

"""The files of a real run, loaded by diffusers, draw what the trained model draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from loralab.adapters.inject import inject
from loralab.adapters.spec import AdapterSpec
from loralab.adapters.state import load_adapter_state
from loralab.models.registry import family_spec
from tests.integration.artifacts import last_checkpoint
from tests.integration.cli import Cli, tiny_run

RANK, ALPHA = 4, 6.5


def load(base: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(
        base, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: StableDiffusionPipeline) -> Tensor:
    """Return a picture (1, H, W, 3) in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    pictures = pipeline(
        "blue circle",
        num_inference_steps=5,
        guidance_scale=3.0,
        height=64,
        width=64,
        generator=generator,
        output_type="np",
    ).images
    return torch.from_numpy(pictures)


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def trained(
    cli: Cli, world: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[str, Path]:
    """A file precision and the folder of a run with a strong adapter on both parts."""
    output = tmp_path_factory.mktemp("export")
    tiny = tiny_run(world / "base", world / "images", world / "held_out", output)
    outcome = cli(
        *tiny,
        f"adapter.rank={RANK}",
        f"adapter.alpha={ALPHA}",
        "optimizer.lr=1e-2",
        "trainer.max_steps=8",
        f"export.precision={request.param}",
        "run_id=a",
    )
    assert outcome.code == 0, outcome.text
    return request.param, output / "smoke" / "a"


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_exported_file_draws_what_the_live_model_draws(
    trained: tuple[str, Path], world: Path, layout: str
) -> None:
    precision, folder = trained
    base = load(world / "base")
    picture_of_base = draw(base)
    live, state = base, last_checkpoint(folder)["state_dict"]
    for name, part in (("unet", live.unet), ("text_encoder", live.text_encoder)):
        preset = "full" if name == "unet" else "attention"
        targets = family_spec("sd1").targets[name][preset]
        inject(part, AdapterSpec("lora", RANK, ALPHA, 0.0, targets), part=name)
        own = {key.removeprefix(f"{name}."): v for key, v in state.items() if key.startswith(name)}
        load_adapter_state(part, own)
    expected = draw(live)
    ending = "" if layout == "kohya" else ".diffusers"

    fresh = load(world / "base")
    fresh.load_lora_weights(folder / "adapters" / f"smoke{ending}.safetensors")
    found = draw(fresh)

    effect = float((expected - picture_of_base).abs().max())
    difference = float((expected - found).abs().max())
    print(f"{layout} {precision}: effect {effect:.3f}, difference {difference:.2e}")
    assert effect > 0.05
    assert difference <= (0.0 if precision == "fp32" else effect / 50)

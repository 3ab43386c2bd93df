"""The experiments for real bases compose, keep the rules, and pass preflight on tiny bases."""

from __future__ import annotations

from pathlib import Path

import pytest

from loralab.app.folders import choose_folder
from loralab.app.preflight import preflight
from loralab.config.parse import parse_config
from tests.config.conftest import composed
from tests.tiny import MAKERS, make_images

EXPERIMENTS = {"sd15_style": "sd1", "sd21_v_style": "sd2", "sdxl_style": "sdxl"}
PARTS = {
    "sd15_style": ["unet", "text_encoder"],
    "sd21_v_style": ["unet", "text_encoder"],
    "sdxl_style": ["unet"],
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_passes_preflight_on_a_tiny_base(experiment: str, tmp_path: Path) -> None:
    family = EXPERIMENTS[experiment]
    base = MAKERS[family](tmp_path / "base")
    make_images(tmp_path / "images", count=40)
    config = parse_config(
        composed(
            f"experiment={experiment}",
            f"model.path={base}",
            f"data.image_dir={tmp_path / 'images'}",
            f"output_dir={tmp_path / 'outputs'}",
            "trainer=cpu",  # the experiments ask for a GPU
            "data.num_workers=0",
            "data.persistent_workers=false",
        )
    )
    survey = preflight(config, choose_folder(config))
    assert config.model.family.name == family
    assert list(survey.parts) == PARTS[experiment]
    assert survey.total_steps == 2000
    sides = {"sd15_style": 512, "sd21_v_style": 768, "sdxl_style": 1024}
    areas = [item.bucket.height * item.bucket.width for item in survey.items]
    assert max(areas) <= sides[experiment] ** 2
    assert min(areas) > 0.75 * sides[experiment] ** 2
    prediction = config.model.prediction_type
    assert (prediction is not None and prediction.name) == (
        "v_prediction" if family == "sd2" else False
    )

"""Settings files with real places in them: tiny bases, numbered folders of images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from loralab.app.composition import compose_config
from loralab.app.settings.experiment import Experiment, load_settings, write_experiment
from loralab.config.records import RunConfig
from tests.tiny import MAKERS, make_images

FILES = Path(__file__).parents[1] / "settings_files"
NAMES = sorted(path.name for path in FILES.iterdir())


@dataclass(frozen=True)
class SettingsWorld:
    """A folder with a base of every family and images as sd-scripts wants them."""

    root: Path

    def file(self, name: str) -> Path:
        """Return a settings file in which the places are real ones; metadata in an adapter file."""
        folder = self.root / "files"
        folder.mkdir(exist_ok=True)
        text = (FILES / name).read_text(encoding="utf-8")
        base = {"launcher_all.json": "sd2", "kohya_ss_sdxl.json": "sdxl"}.get(
            name, "sdxl" if "sdxl" in name else "sd1"
        )
        places = {"BASE": self.root / base, "IMAGES": self.root / "images",
                  "CLASSES": self.root / "classes", "OUTPUT": self.root / "outputs"}  # fmt: skip
        for word, place in places.items():
            text = text.replace(word, str(place))
        if name == "metadata.json":
            path = folder / "adapter.safetensors"
            module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
            save_file({f"{module}.alpha": torch.tensor(4.0)}, path, metadata=json.loads(text))
            return path
        path = folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def load(self, path: Path, *, skip: Sequence[str] = ()) -> tuple[Experiment, RunConfig]:
        """Load a file as `loralab settings load --out` does, and compose its experiment."""
        experiment = load_settings(path, skip=skip)
        out = self.root / "conf" / "experiment" / f"loaded_{path.stem}.yaml"
        out.unlink(missing_ok=True)
        write_experiment(experiment, out)
        # Metadata and datasets do not say where the base is, metadata not where the images are.
        base, images = f"model.path={self.root / 'sd1'}", f"data.image_dir={self.root / 'images'}"
        told = {"adapter": [base, images, "data.layout=numbered_folders"], "dataset": [base]}
        return experiment, self.compose(f"experiment={out.stem}", *told.get(path.stem, []))

    def compose(self, *overrides: str) -> RunConfig:
        """Return the configuration of overrides, loaded experiments among them."""
        return compose_config(overrides, config_dir=self.root / "conf")


def make_world(root: Path) -> SettingsWorld:
    """Write the bases and the images."""
    for family, maker in MAKERS.items():
        maker(root / family)
    for folder in ("images/10_fox", "images/2_city", "classes/1_animal"):
        for file in make_images(root / folder, count=3, seed=len(folder)):
            shutil.copy(file.with_suffix(".txt"), file.with_suffix(".caption"))
    return SettingsWorld(root)

"""Write the demo's models as a Stable Diffusion 1 pipeline folder in half precision."""

import copy
import json
import shutil
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")


def save_pipeline(
    folder: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    work: Path,
    scheduler: DDIMScheduler,
) -> None:
    """Write a pipeline folder with float16 weights; the tokenizer comes from `work`."""
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        unet=copy.deepcopy(unet).half(),
        text_encoder=copy.deepcopy(text_encoder).half(),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    # transformers 5 writes only tokenizer.json; other readers want the two files of CLIP.
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    for name in TOKENIZER_FILES:
        shutil.copy(work / "tokenizer" / name, folder / "tokenizer" / name)
    _forget_local_paths(folder)


def _forget_local_paths(folder: Path) -> None:
    """Drop the folder that a part was loaded from; diffusers writes it into the config."""
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

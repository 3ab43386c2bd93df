"""The judge of previews against transformers' own CLIPModel, and folders that are none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer

from loralab.errors import ModelError
from loralab.models.clip import ClipJudge, check_clip
from tests.tiny_clip import SIDE, make_tiny_clip

PROMPTS = ["red circle", "a blue square and much else", ""]
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images (Radford et al. 2021)
STD = (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("clip") / "clip")


def pictures() -> list[torch.Tensor]:
    """Three pictures of other sizes, whole numbers of 255."""
    generator = torch.Generator().manual_seed(1)
    sizes = ((48, 40), (32, 32), (33, 70))
    return [torch.randint(0, 256, (3, *size), generator=generator) / 255 for size in sizes]


def prepared(picture: torch.Tensor) -> torch.Tensor:
    """Resize the short side by Pillow's bicubic, cut the middle, normalise: (3, SIDE, SIDE)."""
    image = Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())
    width, height = image.size
    short = min(width, height)
    image = image.resize(
        (int(width * SIDE / short), int(height * SIDE / short)), Image.Resampling.BICUBIC
    )
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32) / 255
    normal = (pixels - np.float32(MEAN)) / np.float32(STD)
    return torch.from_numpy(normal).permute(2, 0, 1)


def test_cosines_are_those_of_the_model_itself(folder: Path) -> None:
    judge = ClipJudge(folder)
    ours = judge.embed_pictures(pictures()) @ judge.embed_texts(PROMPTS).T
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = CLIPTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(
            **tokens, pixel_values=torch.stack([prepared(picture) for picture in pictures()])
        )
    theirs = output.logits_per_image / model.logit_scale.exp()
    assert float(ours.std()) > 0.05, "the tiny model tells nothing apart"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_embeddings_have_length_one_and_do_not_depend_on_their_neighbours(folder: Path) -> None:
    judge = ClipJudge(folder)
    together = judge.embed_pictures(pictures())
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    alone = torch.cat([judge.embed_pictures([picture]) for picture in pictures()])
    assert torch.equal(together, alone)


def test_loading_draws_no_random_number(folder: Path) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    ClipJudge(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_prompts_that_are_too_long_are_named_and_cut(folder: Path) -> None:
    longest, longer = " ".join(["red"] * 75), " ".join(["red"] * 76)
    assert check_clip(folder, [longest, longer]) == [longer]
    judge = ClipJudge(folder)
    assert torch.equal(judge.embed_texts([longest]), judge.embed_texts([longer]))


def edit(file: str, **changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **changes}))

    return change


def lose(*files: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for file in files:
            (folder / file).unlink()

    return remove


def pickle_only(folder: Path) -> None:
    os.replace(folder / "model.safetensors", folder / "pytorch_model.bin")


def cut_off(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def reshape_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["text_projection.weight"] = torch.zeros(3, 16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write(file: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text(text) and None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, "does not exist; give the whole folder"),
        (lose("config.json"), "config.json is missing"),
        (write("config.json", "{"), "cannot be read as JSON"),
        (edit("config.json", model_type="clip_text_model"), "type clip_text_model; it must be"),
        (edit("config.json", vision_config=None), "it must be clip, with a text_config"),
        (lose("model.safetensors"), "model.safetensors is missing; give the whole folder"),
        (pickle_only, "is a pickle, which is never opened"),
        (cut_off, "download or convert it again"),
        (lose_a_tensor, "the first is visual_projection.weight"),
        (reshape_a_tensor, "the first is text_projection.weight"),
        (lose("preprocessor_config.json"), "preprocessor_config.json is missing"),
        (edit("preprocessor_config.json", crop_size=64), "cuts pictures to"),
        (lose("vocab.json"), "has no vocab.json and merges.txt"),
        (edit("preprocessor_config.json", crop_size="large"), "cannot be loaded as CLIPImageProc"),
        (write("vocab.json", "[1"), "cannot be loaded as CLIPTokenizer"),
        (write("preprocessor_config.json", "[]"), "holds no JSON object"),
        (edit("vocab.json", extra=99999), "tokens, but vocab_size is"),
    ],
)
def test_a_folder_that_is_no_whole_clip_model_is_refused(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    broken = tmp_path / "clip"
    shutil.copytree(folder, broken)
    damage(broken)
    with pytest.raises(ModelError) as refusal:
        ClipJudge(broken)
    (problem,) = refusal.value.problems
    assert problem.key == "result_metrics.clip_path"
    assert str(problem).startswith("result_metrics.clip_path")
    assert str(broken) in str(problem)
    assert said in str(problem)


def test_a_single_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"which is a file; give the whole folder"):
        check_clip(folder / "model.safetensors")


def test_all_that_is_wrong_is_told_at_once(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "clip"
    shutil.copytree(folder, broken)
    for damage in (cut_off, lose("preprocessor_config.json"), lose("vocab.json")):
        damage(broken)
    with pytest.raises(ModelError) as refusal:
        check_clip(broken)
    assert len(refusal.value.problems) == 3

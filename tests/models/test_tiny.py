import hashlib
from pathlib import Path

import torch
from PIL import Image

from loralab.models.family import ModelFamily
from tests.tiny import make_images, make_tiny_sd1


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_same_seed_makes_the_same_files_and_another_seed_other_weights(tmp_path: Path) -> None:
    first, again, other = (
        digests(make_tiny_sd1(tmp_path / name, seed=seed))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert first[weights] != other[weights]


def test_making_a_model_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    make_tiny_sd1(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_images_are_all_different_with_captions_and_several_shapes(tmp_path: Path) -> None:
    files = make_images(tmp_path / "a", count=12)
    assert digests(tmp_path / "a") == digests(make_images(tmp_path / "b", count=12)[0].parent)
    assert len({hashlib.sha256(file.read_bytes()).digest() for file in files}) == 12
    sizes = set()
    for file in files:
        with Image.open(file) as image:
            sizes.add(image.size)
        assert len(file.with_suffix(".txt").read_text(encoding="utf-8").split(",")) == 3
    assert len(sizes) >= 5


def test_captions_change_what_the_tiny_unet_predicts(family: ModelFamily) -> None:
    noisy, timesteps = torch.randn(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        red, blue, none = (
            family.denoiser(noisy, timesteps, family.conditioner.encode([caption]))
            for caption in ("red, circle", "blue, square", "")
        )
    assert (red - blue).std() > 0.2 * red.std()
    assert (red - none).std() > 0.2 * red.std()

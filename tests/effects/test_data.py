"""Which images, at which sizes, in which order, from which cache."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from loralab.data.batch import Batch
from loralab.data.buckets import Bucket
from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import BATCH_SIZE, NUM_IMAGES, Tiny, changed
from tests.tiny import make_images


@effect("data.image_dir")
def test_every_image_of_the_folder_is_trained_on(tiny: Tiny, tmp_path: Path) -> None:
    files = make_images(tmp_path, count=5, seed=9)
    items = tiny.survey(f"data.image_dir={tmp_path}").items
    assert [item.record.path for item in items] == files


@effect("data.image_dir")
def test_a_missing_image_folder_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"^data\.image_dir is nowhere"):
        tiny.survey("data.image_dir=nowhere")


@effect("data.caption_extension")
def test_captions_come_from_files_of_the_extension(tiny: Tiny, tmp_path: Path) -> None:
    files = make_images(tmp_path, count=3)
    for number, file in enumerate(files):
        file.with_suffix(".caption").write_text(f"number {number}")
    built = tiny.build(f"data.image_dir={tmp_path}", "data.caption_extension=.caption")
    assert built.captions() == ["number 0", "number 1", "number 2"]


@effect("data.repeats")
def test_an_epoch_shows_each_image_as_often_as_repeats_says(tiny: Tiny) -> None:
    built = tiny.build("data.repeats=3")
    keys = [key for batch in built.epoch() for key in batch["keys"]]
    digests = Counter(key.split("#")[0] for key in keys)
    assert len(set(keys)) == 3 * NUM_IMAGES
    assert set(digests.values()) == {3}


@effect("data.resolution")
def test_resolution_sets_the_area_of_the_latents(tiny: Tiny) -> None:
    # 32 px with sides of at least 32 px leaves the square alone; the VAE divides by 8.
    shapes = {batch["moments"].shape[-2:] for batch in tiny.build("data.resolution=32").epoch()}
    assert shapes == {(4, 4)}


@effect("data.batch_size")
@pytest.mark.parametrize(("size", "batches"), [(1, 12), (2, 7), (4, 4), (5, 3)])
def test_batch_size_cuts_each_bucket(tiny: Tiny, size: int, batches: int) -> None:
    # The 12 images fall into buckets of 5, 3 and 4.
    built = tiny.build(f"data.batch_size={size}")
    epoch = built.epoch()
    assert max(len(batch["keys"]) for batch in epoch) == size
    assert len(epoch) == built.survey.steps_per_epoch == batches


@effect("data.num_workers")
def test_workers_change_no_bit_of_the_adapter(tiny: Tiny) -> None:
    found = tiny.run("data.num_workers=2")
    assert found.config.data.num_workers == 2
    assert changed(tiny.run().adapter, found.adapter) == []


@effect("data.num_workers")
def test_workers_load_in_processes_of_their_own(tiny: Tiny) -> None:
    for number in (0, 2):
        loader = tiny.build(f"data.num_workers={number}").job.datamodule.train_dataloader()
        assert loader.num_workers == number  # type: ignore[attr-defined]


@effect("data.flip_probability")
def test_flip_probability_one_trains_on_the_mirrored_image(tiny: Tiny) -> None:
    mirrored, plain = (
        _moments_of_first_image(tiny.build(f"data.flip_probability={p}").epoch()) for p in (1, 0)
    )
    with Image.open(tiny.images / "image_000.png") as image:  # 64 x 64, so nothing is resized
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    vae = AutoencoderKL.from_pretrained(tiny.base / "vae")
    with torch.no_grad():
        expected = vae.encode(pixels.flip(2)[None]).latent_dist.parameters[0]
    torch.testing.assert_close(mirrored, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-2)


def _moments_of_first_image(epoch: list[Batch]) -> torch.Tensor:
    (found,) = [
        moments
        for batch in epoch
        for index, moments in zip(batch["index"].tolist(), batch["moments"], strict=True)
        if index == 0
    ]
    return found


@effect("data.buckets.enabled")
def test_without_buckets_every_image_becomes_the_square(tiny: Tiny) -> None:
    assert len(_buckets(tiny)) == 3
    assert _buckets(tiny, "data.buckets.enabled=false") == {Bucket(64, 64)}


@effect("data.buckets.enabled", "data.latent_cache.enabled")
def test_without_buckets_the_cache_changes_no_pixel(tiny: Tiny, tmp_path: Path) -> None:
    off = ("data.buckets.enabled=false", f"data.latent_cache.directory={tmp_path}")
    cached = tiny.build(*off).epoch()
    plain = tiny.build(*off, "data.latent_cache.enabled=false").epoch()
    vae = AutoencoderKL.from_pretrained(tiny.base / "vae").eval()
    for one, other in zip(cached, plain, strict=True):
        assert one["index"].tolist() == other["index"].tolist()
        assert other["images"].shape[1:] == (3, 64, 64)
        with torch.no_grad():
            moments = vae.encode(other["images"]).latent_dist.parameters
        torch.testing.assert_close(one["moments"], moments, rtol=1e-4, atol=1e-4)
        sizes = ("original_size", "crop_top_left", "target_size")
        assert all(torch.equal(one[key], other[key]) for key in sizes)


@effect("data.buckets.step")
def test_sides_of_buckets_are_multiples_of_the_step(tiny: Tiny) -> None:
    found = _buckets(tiny, "data.buckets.step=32")
    assert len(found) > 1
    assert all(size.height % 32 == size.width % 32 == 0 for size in found)
    assert any(size.height % 32 or size.width % 32 for size in _buckets(tiny))


@effect("data.buckets.step")
def test_a_step_that_the_base_cannot_halve_is_refused(tiny: Tiny) -> None:
    # The tiny VAE divides by 8 and the tiny UNet once by 2.
    with pytest.raises(ConfigError, match=r"data\.buckets\.step is 8;.*multiple of 16"):
        tiny.survey("data.buckets.step=8")


@effect("data.buckets.min_side")
def test_no_side_is_shorter_than_min_side(tiny: Tiny) -> None:
    assert min(min(size.height, size.width) for size in _buckets(tiny)) == 48
    assert _buckets(tiny, "data.buckets.min_side=64") == {Bucket(64, 64)}


@effect("data.buckets.max_side")
def test_no_side_is_longer_than_max_side(tiny: Tiny) -> None:
    assert max(max(size.height, size.width) for size in _buckets(tiny)) == 80
    found = _buckets(tiny, "data.buckets.max_side=64")
    assert max(max(size.height, size.width) for size in found) == 64
    assert len(found) > 1, "images keep their shape below the limit"


def _buckets(tiny: Tiny, *overrides: str) -> set[Bucket]:
    return {item.bucket for item in tiny.survey(*overrides).items}


@effect("data.latent_cache.enabled")
def test_training_is_the_same_with_and_without_the_cache(tiny: Tiny) -> None:
    adapter = tiny.run("data.latent_cache.enabled=false").adapter
    torch.testing.assert_close(adapter, tiny.run().adapter, rtol=1e-3, atol=1e-4)


@effect("data.latent_cache.enabled", "data.latent_cache.directory")
def test_the_cache_holds_one_file_for_each_image_in_its_directory(
    tiny: Tiny, tmp_path: Path
) -> None:
    for enabled, expected, given in (("false", 0, "images"), ("true", NUM_IMAGES, "moments")):
        built = tiny.build(
            f"data.latent_cache.directory={tmp_path}", f"data.latent_cache.enabled={enabled}"
        )
        first = built.epoch()[0]
        assert len(list(tmp_path.rglob("*.safetensors"))) == expected
        assert given in first
        assert len(first["keys"]) <= BATCH_SIZE

"""How files become pixels, buckets, masks and cached latents."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from loralab.data.buckets import Bucket
from loralab.data.dataset import read_pixels
from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import NUM_IMAGES, Tiny, changed
from tests.tiny import make_images

UNCACHED = "data.latent_cache.enabled=false"


def write(folder: Path, pixels: np.ndarray, name: str = "one") -> str:
    """Write a captioned image and return the override that trains on its folder."""
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text("a thing")
    return f"data.image_dir={folder}"


def images_of(tiny: Tiny, *overrides: str, epoch: int = 0) -> list[torch.Tensor]:
    """Return the images of an epoch in order of their files, uncached."""
    batches = tiny.build(UNCACHED, *overrides).epoch(epoch)
    pairs = [
        (int(index), image)
        for batch in batches
        for index, image in zip(batch["index"], batch["images"], strict=True)
    ]
    return [image for _, image in sorted(pairs, key=lambda pair: pair[0])]


def sizes(tiny: Tiny, *overrides: str) -> list[tuple[int, int]]:
    """Return (width, height) of the bucket of each image."""
    buckets = [item.bucket for item in tiny.survey(*overrides).items]
    return [(bucket.width, bucket.height) for bucket in buckets]


@effect("data.background")
@pytest.mark.parametrize(
    ("color", "expected"), [("white", [1, 1, 1]), ("black", [-1, -1, -1]), ("#ff0000", [1, -1, -1])]
)
def test_transparency_is_laid_over_the_background(
    tiny: Tiny, tmp_path: Path, color: str, expected: list[int]
) -> None:
    folder = write(tmp_path, np.zeros((64, 64, 4), np.uint8))
    (image,) = images_of(tiny, folder, f'data.background="{color}"')
    assert image[:, 5, 5].tolist() == expected


@effect("data.background")
def test_a_background_that_is_no_colour_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"data\.background is 'mauve'; it must be white, black"):
        tiny.config("data.background=mauve")


@effect("data.resize_filter")
def test_area_filter_halves_an_image_by_means(tiny: Tiny, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    folder = write(tmp_path, pixels)
    means = pixels.reshape(64, 2, 64, 2, 3).mean((1, 3))
    (area,) = images_of(tiny, folder, "data.resize_filter=area")
    (lanczos,) = images_of(tiny, folder)
    expected = torch.from_numpy(means / 127.5 - 1).permute(2, 0, 1).float()
    torch.testing.assert_close(area, expected, atol=0.5 / 127.5 + 1e-6, rtol=0)
    assert (lanczos - expected).abs().max() > 0.1


@effect("data.augmentations")
def test_flip_mirrors_some_visits_and_leaves_the_others(tiny: Tiny) -> None:
    plain = images_of(tiny)
    seen = set()
    for epoch in range(3):
        for image, other in zip(
            images_of(tiny, "data.augmentations=[flip]", epoch=epoch), plain, strict=True
        ):
            mirrored = torch.equal(image, other.flip(-1))
            assert mirrored or torch.equal(image, other)
            seen.add(mirrored)
    assert seen == {False, True}


@effect("data.augmentations")
@pytest.mark.parametrize(("kind", "low", "high"), [("random_crop", 0, 64), ("crop_jitter", 16, 48)])
def test_crops_move_within_what_hangs_over(
    tiny: Tiny, tmp_path: Path, kind: str, low: int, high: int
) -> None:
    folder = write(tmp_path, np.zeros((64, 128, 3), np.uint8))
    built = tiny.build(
        UNCACHED, folder, f"data.augmentations=[{kind}]", "data.buckets.enabled=false"
    )  # 64 px wide of 128
    lefts = {int(built.epoch(number)[0]["crop_top_left"][0, 1]) for number in range(30)}
    assert len(lefts) > 10
    assert low <= min(lefts)
    assert max(lefts) <= high


@effect("data.augmentations")
def test_color_changes_some_images_a_little(tiny: Tiny) -> None:
    pairs = zip(images_of(tiny, "data.augmentations=[color]"), images_of(tiny), strict=True)
    differences = [float((image - plain).abs().max()) for image, plain in pairs]
    assert 0 < sum(difference > 0 for difference in differences) < NUM_IMAGES
    assert max(differences) < 1


@effect("data.augmentations")
def test_flip_given_twice_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"data\.augmentations has flip.*give one of them"):
        tiny.config("data.augmentations=[flip]", "data.flip_probability=0.5")


@effect("data.augmentations", "data.latent_cache.variants")
def test_random_crops_beside_a_cache_of_one_variant_are_refused_with_both_remedies(
    tiny: Tiny,
) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny.config("data.augmentations=[random_crop, color]")
    assert "data.augmentations has random_crop and color" in str(caught.value)
    assert "data.latent_cache.variants=4" in str(caught.value)
    assert "data.latent_cache.enabled=false" in str(caught.value)


@effect("data.latent_cache.variants")
def test_variants_are_stored_and_each_visit_takes_one(tiny: Tiny, tmp_path: Path) -> None:
    folder = write(tmp_path / "images", np.zeros((64, 128, 3), np.uint8))
    built = tiny.build(
        folder,
        "data.augmentations=[random_crop]",
        "data.buckets.enabled=false",
        "data.latent_cache.variants=3",
        f"data.latent_cache.directory={tmp_path / 'cache'}",
    )
    lefts = {int(built.epoch(number)[0]["crop_top_left"][0, 1]) for number in range(30)}
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == len(lefts) == 3


@effect("data.latent_cache.variants")
def test_variants_that_nothing_needs_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"variants is 4, but no augmentation needs them"):
        tiny.config("data.latent_cache.variants=4")


# -- buckets -----------------------------------------------------------------------------------


@effect("data.buckets.match")
def test_match_ratio_finds_the_bucket_of_sd_scripts(tiny: Tiny, tmp_path: Path) -> None:
    # Between 0.4 (32 x 80) and 0.6 (48 x 80) lies 0.495: above their geometric mean, 0.490, and
    # below their mean, 0.5.
    folder = write(tmp_path, np.zeros((200, 99, 3), np.uint8))
    given = "data.buckets.sizes=[32x80, 48x80]"
    assert sizes(tiny, folder, given) == [(48, 80)]
    assert sizes(tiny, folder, given, "data.buckets.match=ratio") == [(32, 80)]


@effect("data.buckets.sizes")
def test_sizes_are_the_buckets_there_are(tiny: Tiny) -> None:
    assert set(sizes(tiny, "data.buckets.sizes=[96x64, 32x96]")) == {(96, 64), (32, 96)}


@effect("data.buckets.sizes")
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("832", "a size is written WIDTHxHEIGHT"),
        ("830x1216", "sides must be multiples of 8. Use 832x1216"),
        ("64x64, 64x64", "64x64 2 times"),
        ("72x64", "for this base sides must be multiples of 16. Use 64x64"),
    ],
)
def test_sizes_that_cannot_be_are_refused(tiny: Tiny, given: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace(".", r"\.")):
        tiny.survey(f"data.buckets.sizes=[{given}]")


@effect("data.buckets.no_upscale")
def test_without_upscale_small_images_keep_their_pixels(tiny: Tiny, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    folder = write(tmp_path, pixels)
    assert sizes(tiny, folder) == [(64, 64)]
    (item,) = tiny.survey(folder, "data.buckets.no_upscale=true").items
    assert item.bucket == Bucket(height=32, width=48)
    cut = torch.from_numpy(pixels[4:36, 1:49]).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(read_pixels(item), cut)


@effect("data.buckets.no_upscale")
def test_without_upscale_an_image_smaller_than_a_step_is_named(tiny: Tiny, tmp_path: Path) -> None:
    folder = write(tmp_path, np.zeros((64, 10, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"one\.png is 10 x 64 px; a side must be at least"):
        tiny.survey(folder, "data.buckets.no_upscale=true")


# -- masks -------------------------------------------------------------------------------------


def half_transparent() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8)
    pixels[:, :32, 3], pixels[:, 32:, 3] = 255, 0
    return pixels


@effect("data.masks", "data.mask_floor")
def test_alpha_masks_reach_the_batch_and_the_floor_lifts_them(tiny: Tiny, tmp_path: Path) -> None:
    folder = write(tmp_path, half_transparent())
    assert "mask" not in tiny.build(folder).epoch()[0]
    for floor in (0.0, 0.25):
        built = tiny.build(folder, "data.masks=alpha", f"data.mask_floor={floor}")
        mask = built.epoch()[0]["mask"]
        assert mask.shape == (1, 1, 8, 8)
        torch.testing.assert_close(mask[0, 0, 0], torch.tensor([1.0] * 4 + [floor] * 4))


@effect("data.masks")
def test_masks_change_what_is_learnt(tiny: Tiny, tmp_path: Path) -> None:
    folder = write(tmp_path, half_transparent())
    masked = tiny.run(folder, "data.masks=alpha").adapter
    assert changed(tiny.run(folder).adapter, masked)


@effect("data.masks", "data.mask_dir")
def test_mask_files_lie_beside_the_images_or_in_their_folder(tiny: Tiny, tmp_path: Path) -> None:
    folder = write(tmp_path / "images", np.zeros((64, 64, 3), np.uint8))
    masks = tmp_path / "masks"
    masks.mkdir()
    with pytest.raises(ConfigError, match=r"one\.png has no mask .*images/one\.mask\.png; paint"):
        tiny.survey(folder, "data.masks=file")
    Image.new("L", (64, 64), 0).save(tmp_path / "images" / "one.mask.png")
    Image.new("L", (64, 64), 255).save(masks / "one.mask.png")
    for place, expected in ((None, 0), (masks, 1)):
        built = tiny.build(folder, "data.masks=file", f"data.mask_dir={place or 'null'}")
        assert built.epoch()[0]["mask"].unique().tolist() == [expected]


@effect("data.sources[].mask_dir")
def test_a_source_may_have_a_mask_folder_of_its_own(tiny: Tiny, tmp_path: Path) -> None:
    entries = []
    for name, grey in (("one", 0), ("two", 255)):
        write(tmp_path / name, np.full((64, 64, 3), grey, np.uint8))
        (tmp_path / f"{name}_masks").mkdir()
        Image.new("L", (64, 64), grey).save(tmp_path / f"{name}_masks" / "one.mask.png")
        entries.append(f"{{image_dir: {tmp_path / name}, mask_dir: {tmp_path / name}_masks}}")
    own = ["data.image_dir=null", f"data.sources=[{', '.join(entries)}]"]
    built = tiny.build(*own, "data.masks=file", "data.shuffle_data=false")
    assert built.epoch()[0]["mask"].mean((1, 2, 3)).tolist() == [0.0, 1.0]
    with pytest.raises(ConfigError, match=r"data\.sources\[0\]\.mask_dir is .*data\.masks is none"):
        tiny.config(*own)


@effect("data.on_bad_image")
def test_an_image_without_a_usable_mask_stops_the_run_or_is_left_out(
    tiny: Tiny, tmp_path: Path
) -> None:
    files = make_images(tmp_path, count=4)
    for file in files[:3]:
        with Image.open(file) as image:
            size = image.size if file != files[1] else (8, 80)
        Image.new("L", size, 255).save(file.with_suffix(".mask.png"))
    own = [f"data.image_dir={tmp_path}", "data.masks=file"]
    with pytest.raises(ConfigError) as caught:
        tiny.survey(*own)
    wrong, missing = caught.value.problems
    assert "a mask must have the shape of its image" in str(wrong)
    assert f"{files[3]} has no mask" in str(missing)
    survey = tiny.survey(*own, "data.on_bad_image=skip")
    assert [item.record.path for item in survey.items] == [files[0], files[2]]
    assert [problem.key for problem in survey.skipped] == [str(files[1]), str(files[3])]


@effect("data.mask_dir", "data.mask_floor")
def test_mask_options_without_masks_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny.config("data.mask_dir=masks", "data.mask_floor=0.1")
    assert "data.mask_dir is masks, but data.masks is none" in str(caught.value)
    assert "data.mask_floor is 0.1, but data.masks is none" in str(caught.value)


# -- the latent cache --------------------------------------------------------------------------


@effect("data.latent_cache.storage")
def test_latents_in_memory_train_the_same_and_leave_no_file(tiny: Tiny, tmp_path: Path) -> None:
    place = f"data.latent_cache.directory={tmp_path / 'cache'}"
    found = tiny.run("data.latent_cache.storage=memory", place)
    assert not (tmp_path / "cache").exists()
    assert changed(tiny.run().adapter, found.adapter) == []


@effect("data.latent_cache.precision")
@pytest.mark.parametrize(("precision", "num_bytes"), [("fp32", 4), ("fp16", 2), ("bf16", 2)])
def test_precision_is_that_of_the_files(
    tiny: Tiny, tmp_path: Path, precision: str, num_bytes: int
) -> None:
    tiny.build(
        f"data.latent_cache.precision={precision}", f"data.latent_cache.directory={tmp_path}"
    ).epoch()
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) == NUM_IMAGES
    assert {load_file(file)["moments"].itemsize for file in files} == {num_bytes}


@effect("data.latent_cache.posterior")
def test_frozen_posterior_gives_an_image_the_same_latents_in_every_epoch(tiny: Tiny) -> None:
    for posterior, same in (("resample", False), ("frozen", True)):
        built = tiny.build(f"data.latent_cache.posterior={posterior}")
        first, second = (
            {
                key: latents
                for batch in built.epoch(number)
                for key, latents in zip(batch["keys"], built.job.module.latents(batch), strict=True)
            }
            for number in range(2)
        )
        assert len(first) == NUM_IMAGES
        assert all(torch.equal(first[key], second[key]) == same for key in first)


@effect("data.latent_cache.size_limit")
def test_latents_beyond_the_limit_are_refused_before_anything_is_encoded(
    tiny: Tiny, tmp_path: Path
) -> None:
    images, place = tmp_path / "images", tmp_path / "cache"
    make_images(images, count=4)
    given = [f"data.image_dir={images}", f"data.latent_cache.directory={place}"]
    with pytest.raises(ConfigError) as caught:
        tiny.build(*given, "data.latent_cache.size_limit=1e-6")
    assert str(caught.value).startswith("data.latent_cache.size_limit is 1e-06 GB; the latents of")
    assert list(place.rglob("*.safetensors")) == []
    tiny.build(*given, "data.latent_cache.size_limit=1").epoch()
    tiny.build(*given, "data.latent_cache.size_limit=1e-6").epoch()  # nothing more is needed
    make_images(images, count=5)
    with pytest.raises(ConfigError, match=rf"loralab cache clean {place}"):
        tiny.build(*given, "data.latent_cache.size_limit=1e-6")


@pytest.mark.parametrize(
    "more",
    [
        ["data.resolution_schedule=['0:32', '0.5:64']", "trainer.max_steps=8"],
        [
            "data.augmentations=[color]",
            "data.latent_cache.variants=2",
            "validation.train_probe=true",
        ],
    ],
)
def test_the_limit_counts_everything_that_is_encoded(
    tiny: Tiny, tmp_path: Path, more: list[str]
) -> None:
    place = tmp_path / "cache"
    given = [f"data.latent_cache.directory={place}", "validation.fraction=0.3", *more]
    tiny.build(*given).epoch()
    size = sum(file.stat().st_size for file in place.rglob("*.safetensors"))
    shutil.rmtree(place)
    with pytest.raises(ConfigError, match=r"size_limit is .* GB; the latents of this run need"):
        tiny.build(*given, f"data.latent_cache.size_limit={0.95 * size / 1e9}")

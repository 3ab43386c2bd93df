"""Where images come from: layouts, several sources, limits, what becomes of unusable files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import NUM_IMAGES, Tiny
from tests.tiny import make_images


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of three images each."""
    for number, name in enumerate(("one", "two")):
        make_images(tmp_path / name, count=3, seed=20 + number)
    return tmp_path / "one", tmp_path / "two"


def sources(*entries: str) -> list[str]:
    """Return the overrides for several sources."""
    return ["data.image_dir=null", f"data.sources=[{', '.join(f'{{{e}}}' for e in entries)}]"]


def counts(tiny: Tiny, *overrides: str) -> Counter[str]:
    """Return how often an epoch shows the images of each folder."""
    return Counter(str(item.record.path.parent) for item in tiny.survey(*overrides).items)


@effect("data.sources", "data.sources[].image_dir")
def test_an_epoch_shows_the_images_of_every_source(tiny: Tiny, two: tuple[Path, Path]) -> None:
    one, other = two
    found = counts(tiny, *sources(f"image_dir: {one}", f"image_dir: {other}"))
    assert found == {str(one): 3, str(other): 3}


@effect("data.sources", "data.sources[].image_dir")
def test_problems_of_several_sources_are_told_together(tiny: Tiny, tmp_path: Path) -> None:
    places = [f"image_dir: {tmp_path / name}" for name in ("here", "there")]
    with pytest.raises(ConfigError) as caught:
        tiny.survey(*sources(*places))
    assert [p.key for p in caught.value.problems] == [
        "data.sources[0].image_dir",
        "data.sources[1].image_dir",
    ]


def test_files_of_several_sources_tell_of_each(tiny: Tiny, tmp_path: Path) -> None:
    one, other = tmp_path / "a" / "pictures", tmp_path / "b" / "pictures"
    for number, folder in enumerate((one, other)):
        make_images(folder, count=3, seed=20 + number)
    options = "captions: {prefix: 'a drawing,'}"
    run = tiny.run(
        *sources(f"image_dir: {one}, repeats: 4, {options}", f"image_dir: {other}"),
        "trainer.max_steps=1",
    )
    folders = json.loads(run.metadata["ss_dataset_dirs"])
    assert folders == {
        "pictures": {"n_repeats": 4, "img_count": 3},
        "pictures (2)": {"n_repeats": 1, "img_count": 3},
    }
    assert json.loads(run.metadata["ss_tag_frequency"]).keys() == folders.keys()
    (dataset,) = json.loads(run.metadata["ss_datasets"])
    assert (dataset["num_train_images"], dataset["num_reg_images"]) == (15, 0)
    assert dataset["batch_size_per_device"] == 2
    found = [(s["num_repeats"], s["img_count"], s["caption_prefix"]) for s in dataset["subsets"]]
    assert found == [(4, 3, "a drawing,"), (1, 3, None)]
    assert "ss_datasets" not in tiny.run("trainer.max_steps=1").metadata


@effect("data.sources[].repeats")
def test_repeats_of_a_source_are_its_own(tiny: Tiny, two: tuple[Path, Path]) -> None:
    one, other = two
    found = counts(tiny, *sources(f"image_dir: {one}, repeats: 4", f"image_dir: {other}"))
    assert found == {str(one): 12, str(other): 3}


@effect("data.sources[].weight")
def test_weight_of_a_source_is_the_loss_weight_of_its_images(
    tiny: Tiny, two: tuple[Path, Path]
) -> None:
    one, other = two
    survey = tiny.survey(*sources(f"image_dir: {one}, weight: 0.5", f"image_dir: {other}"))
    weights = {(str(i.record.path.parent), i.record.weight) for i in survey.items}
    assert weights == {(str(one), 0.5), (str(other), 1.0)}


@effect("data.sources[].captions")
def test_caption_options_of_a_source_lie_over_those_of_all(
    tiny: Tiny, two: tuple[Path, Path]
) -> None:
    one, other = two
    built = tiny.build(
        *sources(f"image_dir: {one}, captions: {{prefix: 'a drawing,'}}", f"image_dir: {other}"),
        "data.captions.suffix=end",
    )
    captions = built.captions()
    assert [caption.startswith("a drawing, ") for caption in captions] == [True] * 3 + [False] * 3
    assert all(caption.endswith(" end") for caption in captions)


@effect("data.sources[].augmentations")
def test_augmentations_of_a_source_are_its_own(tiny: Tiny, two: tuple[Path, Path]) -> None:
    one, other = two
    survey = tiny.survey(
        *sources(f"image_dir: {one}, augmentations: [flip]", f"image_dir: {other}")
    )
    first, last = survey.items[0].source, survey.items[-1].source
    assert (first.augmentation.is_identity, last.augmentation.is_identity) == (False, True)


@effect("data.sources[].caption_extension", "data.sources[].class_text")
def test_captions_of_a_source_are_found_its_own_way(tiny: Tiny, two: tuple[Path, Path]) -> None:
    one, other = two
    for path in one.glob("*.txt"):
        path.rename(path.with_suffix(".cap"))
    for path in other.glob("*.txt"):
        path.unlink()
    built = tiny.build(
        *sources(f"image_dir: {one}, caption_extension: .cap", f"image_dir: {other}, class_text: x")
    )
    captions = built.captions()
    assert captions == [p.read_text().strip() for p in sorted(one.glob("*.cap"))] + ["x"] * 3


def write_metadata(folder: Path, name: str, column: str) -> None:
    """Write the captions "number 0" and so on into one file, and take the caption files away."""
    images = sorted(folder.glob("*.png"))
    rows = [{"file_name": path.name, column: f"number {n}"} for n, path in enumerate(images)]
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows))
    for path in folder.glob("*.txt"):
        path.unlink()


@effect("data.sources[].layout", "data.sources[].metadata_file", "data.sources[].caption_column")
def test_a_source_has_a_layout_of_its_own(tiny: Tiny, two: tuple[Path, Path]) -> None:
    one, other = two
    write_metadata(one, "words.jsonl", "words")
    metadata = "layout: metadata, metadata_file: words.jsonl, caption_column: words"
    built = tiny.build(*sources(f"image_dir: {one}, {metadata}", f"image_dir: {other}"))
    assert built.captions()[:3] == ["number 0", "number 1", "number 2"]
    assert built.captions()[3:] == [p.read_text().strip() for p in sorted(other.glob("*.txt"))]


@effect("data.layout")
def test_numbered_folders_give_repeats_and_captions(tiny: Tiny, tmp_path: Path) -> None:
    for name, number in (("3_red dog", 2), ("1_dog", 1)):
        make_images(tmp_path / name, count=number, seed=number)
    for path in (tmp_path / "3_red dog").glob("*.txt"):
        path.unlink()
    built = tiny.build(f"data.image_dir={tmp_path}", "data.layout=numbered_folders")
    (own,) = [p.read_text().strip() for p in (tmp_path / "1_dog").glob("*.txt")]
    assert built.captions() == [own] + ["red dog"] * 6


@effect("data.layout", "data.metadata_file", "data.caption_column")
def test_a_metadata_file_gives_the_captions(tiny: Tiny, two: tuple[Path, Path]) -> None:
    folder, _ = two
    write_metadata(folder, "metadata.jsonl", "text")
    where = [f"data.image_dir={folder}", "data.layout=metadata"]
    assert tiny.build(*where).captions() == ["number 0", "number 1", "number 2"]
    write_metadata(folder, "words.jsonl", "words")
    named = [*where, "data.metadata_file=words.jsonl"]
    assert tiny.build(*named, "data.caption_column=words").captions()[0] == "number 0"
    with pytest.raises(ConfigError, match=r"set data\.caption_column to one of file_name, words"):
        tiny.survey(*named)


@effect("data.class_text")
def test_class_text_is_the_caption_of_images_without_a_file(
    tiny: Tiny, two: tuple[Path, Path]
) -> None:
    folder, _ = two
    first, *others = sorted(folder.glob("*.txt"))
    for path in others:
        path.unlink()
    captions = tiny.build(f"data.image_dir={folder}", "data.class_text=a dog").captions()
    assert captions == [first.read_text().strip(), "a dog", "a dog"]


@effect("data.prior.layout")
def test_class_images_have_a_layout_of_their_own(
    tiny: Tiny, two: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "class"
    make_images(folder / "1_clock", count=2, seed=3)
    for path in folder.rglob("*.txt"):
        path.unlink()
    own = [f"data.image_dir={two[0]}", f"data.prior.image_dir={folder}"]
    survey = tiny.survey(*own, "data.prior.layout=numbered_folders")
    captions = {item.record.captions for item in survey.items if item.source.is_prior}
    assert captions == {("clock",)}
    with pytest.raises(ConfigError, match="has no caption file"):
        tiny.survey(*own)


@effect("validation.files")
def test_named_files_are_held_out_of_the_sources_and_others_come_in(
    tiny: Tiny, two: tuple[Path, Path]
) -> None:
    inside, outside = tiny.images / "image_003.png", two[0] / "image_000.png"
    survey = tiny.survey(f"validation.files=[{inside}, {outside}]")
    assert {item.record.path for item in survey.validation_items} == {inside, outside}
    assert len(survey.items) == NUM_IMAGES - 1
    assert inside not in {item.record.path for item in survey.items}
    with pytest.raises(ConfigError, match=r"validation\.files has nowhere\.png, which is not a"):
        tiny.survey("validation.files=[nowhere.png]")


@effect("validation.fraction")
def test_copies_of_an_image_are_held_out_together_and_new_files_move_none(
    tiny: Tiny, tmp_path: Path
) -> None:
    make_images(tmp_path, count=12)
    (tmp_path / "copy.png").write_bytes((tmp_path / "image_000.png").read_bytes())
    (tmp_path / "copy.txt").write_text("again")
    own = [f"data.image_dir={tmp_path}", "validation.fraction=0.4", "data.repeats=2"]
    before = tiny.survey(*own)
    digests = {item.record.digest for item in before.items}
    held_out = [item.record for item in before.validation_items]
    assert not digests & {record.digest for record in held_out}
    assert len(held_out) == len({record.path for record in held_out}), "repeats are not measured"
    make_images(tmp_path / "more", count=8, seed=77)
    after = tiny.survey(*own)
    assert digests <= {item.record.digest for item in after.items}
    assert {r.digest for r in held_out} <= {i.record.digest for i in after.validation_items}


@effect("validation.fraction")
def test_a_share_that_holds_out_nothing_is_refused_with_the_least_that_does(
    tiny: Tiny, two: tuple[Path, Path]
) -> None:
    own = f"data.image_dir={two[0]}"
    with pytest.raises(ConfigError, match=r"holds out none of the 3 images; raise it to") as caught:
        tiny.survey(own, "validation.fraction=0.0001")
    least = str(caught.value).partition("raise it to ")[2].split(" ")[0]
    assert len(tiny.survey(own, f"validation.fraction={least}").validation_items) == 1


@pytest.fixture
def sizes(tmp_path: Path) -> Path:
    """Images of 40 x 40, 64 x 64, 128 x 32 and 300 x 200 px."""
    for number, (width, height) in enumerate([(40, 40), (64, 64), (128, 32), (300, 200)]):
        path = tmp_path / f"{width}x{height}.png"
        Image.new("RGB", (width, height), (number, 0, 0)).save(path)
        path.with_suffix(".txt").write_text("x")
    return tmp_path


@effect(
    "data.image_filter.min_side",
    "data.image_filter.max_side",
    "data.image_filter.min_area",
    "data.image_filter.max_upscale",
)
@pytest.mark.parametrize(
    ("limit", "left_out", "says"),
    [
        ("min_side=41", {"128x32", "40x40"}, "min_side is 41"),
        ("max_side=128", {"300x200"}, "max_side is 128"),
        ("min_area=4096", {"40x40"}, "which is 1600"),  # 128 x 32 is exactly 4096
        # 40 px become 64: 1.6 times. 128 x 32 fills 112 x 32 (4:1 to 3.5:1), not enlarged.
        ("max_upscale=1.5", {"40x40"}, "would be enlarged 1.60 times"),
        ("max_upscale=1.6", set(), ""),
    ],
)
def test_images_beyond_a_limit_are_left_out(
    tiny: Tiny, sizes: Path, limit: str, left_out: set[str], says: str
) -> None:
    survey = tiny.survey(
        f"data.image_dir={sizes}", f"data.image_filter.{limit}", "data.image_filter.action=skip"
    )
    assert {Path(problem.key).stem for problem in survey.skipped} == left_out
    assert len(survey.items) == 4 - len(left_out)
    assert all("data.image_filter." in str(problem) for problem in survey.skipped)
    assert any(says in str(problem) for problem in survey.skipped) or not left_out


@effect("data.image_filter.action")
def test_images_beyond_a_limit_are_refused_left_out_or_told(tiny: Tiny, sizes: Path) -> None:
    own = [f"data.image_dir={sizes}", "data.image_filter.min_area=4096"]
    with pytest.raises(ConfigError) as caught:
        tiny.survey(*own)
    (problem,) = caught.value.problems
    assert problem.key == str(sizes / "40x40.png")
    skip, warn = (tiny.survey(*own, f"data.image_filter.action={a}") for a in ("skip", "warn"))
    assert (len(skip.items), len(skip.skipped), len(skip.odd)) == (3, 1, 0)
    assert (len(warn.items), len(warn.skipped), len(warn.odd)) == (4, 0, 1)


@effect("data.on_bad_image")
def test_an_unusable_image_stops_the_run_or_is_left_out(tiny: Tiny, two: tuple[Path, Path]) -> None:
    folder, _ = two
    bad = folder / "image_001.png"
    bad.write_bytes(b"no image")
    with pytest.raises(ConfigError) as caught:
        tiny.survey(f"data.image_dir={folder}")
    assert [problem.key for problem in caught.value.problems] == [str(bad)]
    survey = tiny.survey(f"data.image_dir={folder}", "data.on_bad_image=skip")
    assert [item.record.path.stem for item in survey.items] == ["image_000", "image_002"]
    assert [problem.key for problem in survey.skipped] == [str(bad)]


@effect("data.on_bad_image")
def test_a_folder_of_nothing_but_unusable_images_is_refused_all_the_same(
    tiny: Tiny, two: tuple[Path, Path]
) -> None:
    for path in two[0].glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ConfigError, match="none of its images can be used"):
        tiny.survey(f"data.image_dir={two[0]}", "data.on_bad_image=skip")


def test_a_side_below_one_bucket_step_is_refused_with_the_name_of_the_file(
    tiny: Tiny, sizes: Path
) -> None:
    path = sizes / "thin.png"
    Image.new("RGB", (300, 15)).save(path)
    path.with_suffix(".txt").write_text("x")
    with pytest.raises(ConfigError) as caught:
        tiny.survey(f"data.image_dir={sizes}")
    assert str(caught.value) == (
        f"{path} is 300 x 15 px; a side must be at least data.buckets.step (16). Enlarge it or "
        "take it out."
    )


@effect("data.shuffle_data")
def test_without_shuffling_every_epoch_has_the_same_order(tiny: Tiny) -> None:
    def orders(*overrides: str) -> list[list[int]]:
        built = tiny.build(*overrides)
        return [
            [index for batch in built.epoch(epoch) for index in batch["index"].tolist()]
            for epoch in (0, 1)
        ]

    first, second = orders("data.shuffle_data=false")
    assert first == second
    shuffled = orders()
    assert shuffled[0] != shuffled[1]
    assert sorted(shuffled[0]) == sorted(first)


@effect("data.persistent_workers", "data.prefetch_factor")
def test_workers_stay_and_load_ahead_as_told(tiny: Tiny) -> None:
    own = ["data.num_workers=1", "data.persistent_workers=false", "data.prefetch_factor=5"]
    found, usual, none = (
        tiny.build(*overrides).job.datamodule.train_dataloader()
        for overrides in (own, own[:1], own[1:])
    )
    assert (found.persistent_workers, found.prefetch_factor) == (False, 5)
    assert (usual.persistent_workers, usual.prefetch_factor) == (True, 2)
    assert (none.persistent_workers, none.prefetch_factor) == (False, None)

"""Class images beside the training images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import NUM_IMAGES, Tiny, TinyJob, changed
from tests.tiny import make_images


@pytest.fixture
def class_images(tmp_path: Path) -> Path:
    """Five images that are not among the training images."""
    make_images(tmp_path / "class", count=5, seed=7)
    return tmp_path / "class"


def digests(built: TinyJob, epoch: int, *, is_prior: bool) -> Counter[str]:
    """Return how often an epoch shows each content of one kind."""
    return Counter(
        key.split("#")[0]
        for batch in built.epoch(epoch)
        for key, kind in zip(batch["keys"], batch["is_prior"], strict=True)
        if kind == is_prior
    )


@effect("data.prior.image_dir")
def test_an_epoch_shows_as_many_class_images_as_images(tiny: Tiny, class_images: Path) -> None:
    built = tiny.build(f"data.prior.image_dir={class_images}")
    extra = []
    for epoch in range(5):
        assert set(digests(built, epoch, is_prior=False).values()) == {1}
        found = digests(built, epoch, is_prior=True)
        assert sum(found.values()) == NUM_IMAGES == 12
        assert sorted(found.values()) == [2, 2, 2, 3, 3]  # 12 = 5 + 5 + 2
        extra += [digest for digest, count in found.items() if count == 3]
    assert len(set(extra)) > 2, "the two last places go round"


@effect("data.prior.image_dir")
def test_more_class_images_than_images_take_turns(tiny: Tiny, tmp_path: Path) -> None:
    make_images(tmp_path, count=30, seed=8)
    built = tiny.build(f"data.prior.image_dir={tmp_path}")
    epochs = [digests(built, epoch, is_prior=True) for epoch in range(6)]
    assert {sum(epoch.values()) for epoch in epochs} == {NUM_IMAGES}
    assert len(set().union(*epochs)) == 30


@effect("data.prior.rotate")
def test_without_turns_the_first_class_images_fill_the_places(
    tiny: Tiny, class_images: Path, tmp_path: Path
) -> None:
    built = tiny.build(f"data.prior.image_dir={class_images}", "data.prior.rotate=false")
    places = [item.record.path.stem for item in built.survey.items if item.source.is_prior]
    expected = {f"image_{n:03d}": 3 if n < 2 else 2 for n in range(5)}  # 12 = 5 + 5 + 2
    assert Counter(places) == expected
    assert digests(built, 0, is_prior=True) == digests(built, 1, is_prior=True)
    make_images(tmp_path / "many", count=14, seed=8)
    survey = tiny.survey(f"data.prior.image_dir={tmp_path / 'many'}", "data.prior.rotate=false")
    idle = [Path(problem.key).stem for problem in survey.skipped]
    assert idle == ["image_012", "image_013"]
    assert "data.prior.rotate is false" in str(survey.skipped[0])


@effect("data.prior.image_dir")
def test_class_images_train_and_are_measured_apart(tiny: Tiny, class_images: Path) -> None:
    own = [f"data.prior.image_dir={class_images}", "logger=csv", "trainer.max_steps=13",
           "trainer.log_every_n_steps=13"]  # fmt: skip
    run = tiny.run_anew(*own)
    (prior,) = run.column("train/loss_prior")
    assert prior > 0
    assert (run.metadata["ss_num_train_images"], run.metadata["ss_num_reg_images"]) == ("12", "12")
    assert "12 images, 12 an epoch; 5 class images, 12 an epoch" in run.stdout
    assert "train/loss_prior" not in tiny.run("logger=csv").rows()[0]


@effect("data.prior.image_dir")
def test_validation_measures_no_class_images_and_learns_no_held_out_ones(
    tiny: Tiny, tmp_path: Path
) -> None:
    # The same folder twice: what the share holds out must not come back as a class image.
    survey = tiny.survey("validation.fraction=0.3", f"data.prior.image_dir={tiny.images}")
    held_out = {item.record.digest for item in survey.validation_items}
    assert not any(item.source.is_prior for item in survey.validation_items)
    assert not held_out & {item.record.digest for item in survey.items}
    assert len({item.record.digest for item in survey.items}) == NUM_IMAGES - len(held_out)


@effect("data.prior.image_dir")
def test_a_missing_folder_of_class_images_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"^data\.prior\.image_dir is nowhere"):
        tiny.survey("data.prior.image_dir=nowhere")


@effect("data.prior.weight")
def test_the_weight_of_class_images_is_their_share_of_the_window(
    tiny: Tiny, class_images: Path
) -> None:
    built = tiny.build(f"data.prior.image_dir={class_images}", "data.prior.weight=0.25",
                       "data.batch_size=8")  # fmt: skip
    mixed = 0
    for batch in built.epoch():
        shares: dict[bool, set[float]] = {True: set(), False: set()}
        for kind, share in zip(batch["is_prior"], batch["loss_weight"].tolist(), strict=True):
            shares[kind].add(share)
        if all(shares.values()):
            ((prior,), (plain,)) = shares[True], shares[False]
            assert prior == pytest.approx(plain / 4)
            mixed += 1
        assert float(batch["loss_weight"].sum()) == pytest.approx(1.0)
    assert mixed


@effect("data.prior.weight")
def test_another_weight_trains_another_adapter(tiny: Tiny, class_images: Path) -> None:
    own = (f"data.prior.image_dir={class_images}", "data.batch_size=8")
    one, other = tiny.run_anew(*own), tiny.run_anew(*own, "data.prior.weight=0.1")
    assert changed(one.adapter, other.adapter)


@effect("data.prior.caption_extension")
def test_class_images_have_an_extension_of_their_own(tiny: Tiny, class_images: Path) -> None:
    for path in class_images.glob("*.txt"):
        path.rename(path.with_suffix(".cap"))
    survey = tiny.survey(
        f"data.prior.image_dir={class_images}", "data.prior.caption_extension=.cap"
    )
    assert {item.record.path.parent for item in survey.items} == {tiny.images, class_images}
    with pytest.raises(ConfigError, match=r"set data\.prior\.caption_extension to the extension"):
        tiny.survey(f"data.prior.image_dir={class_images}")


@effect("data.prior.class_text")
def test_class_text_is_the_caption_of_class_images_without_a_file(
    tiny: Tiny, class_images: Path
) -> None:
    first, *others = sorted(class_images.glob("*.txt"))
    for path in others:
        path.unlink()
    survey = tiny.survey(f"data.prior.image_dir={class_images}", "data.prior.class_text=a clock")
    captions = {
        item.record.path.stem: item.record.captions for item in survey.items if item.source.is_prior
    }
    assert captions[first.stem] == (first.read_text().strip(),)
    assert {captions[path.stem] for path in others} == {("a clock",)}

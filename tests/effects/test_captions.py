"""What the batches carry in place of the caption as written, e.g. ``red, circle, grey ground``."""

from __future__ import annotations

from pathlib import Path

import pytest

from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import Tiny
from tests.tiny import make_images

SHUFFLED = "data.captions.shuffle_tags=true"


def written(tiny: Tiny) -> list[str]:
    files = sorted(tiny.images.glob("*.txt"))
    return [file.read_text(encoding="utf-8").strip() for file in files]


def images(folder: Path, *captions: str) -> str:
    """Write an image for each caption and return the override that names them."""
    for file, caption in zip(make_images(folder, count=len(captions)), captions, strict=True):
        file.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return f"data.image_dir={folder}"


def tags(caption: str) -> list[str]:
    return caption.split(", ")


@effect("data.captions.prefix")
def test_prefix_stands_before_every_caption(tiny: Tiny) -> None:
    found = tiny.build("data.captions.prefix='my icon,'").captions()
    assert found == [f"my icon, {caption}" for caption in written(tiny)]


@effect("data.captions.suffix")
def test_suffix_stands_after_every_caption(tiny: Tiny) -> None:
    found = tiny.build("data.captions.suffix=', my icon'").captions()
    assert found == [f"{caption} , my icon" for caption in written(tiny)]


@effect("data.captions.multi_line")
def test_every_line_of_a_caption_file_is_seen_in_some_epoch(tiny: Tiny, tmp_path: Path) -> None:
    folder = images(tmp_path, *["red\n\n  green\nblue\n"] * 3)
    assert tiny.build(folder).captions() == ["red"] * 3
    built = tiny.build(folder, "data.captions.multi_line=true")
    epochs = [built.captions(epoch) for epoch in range(20)]
    for lines in zip(*epochs, strict=True):
        assert set(lines) == {"red", "green", "blue"}  # one seed in 370 misses one


@effect("data.captions.wildcards")
def test_wildcards_become_another_alternative_on_other_visits(tiny: Tiny, tmp_path: Path) -> None:
    folder = images(tmp_path, *["a {red|blue} {{x}}"] * 4)
    assert tiny.build(folder).captions() == ["a {red|blue} {{x}}"] * 4
    built = tiny.build(folder, "data.captions.wildcards=true")
    found = {caption for epoch in range(8) for caption in built.captions(epoch)}
    assert found == {"a red {x}", "a blue {x}"}


@effect("data.captions.wildcards")
def test_a_wildcard_that_does_not_close_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = images(tmp_path, "a {red|blue hat", "a hat")
    sentence = r"The caption of .*image_000.png has a brace without its partner"
    with pytest.raises(ConfigError, match=sentence):
        tiny.survey(folder, "data.captions.wildcards=true")
    tiny.survey(folder)


@effect("data.captions.shuffle_tags")
def test_shuffling_reorders_tags_anew_in_every_epoch(tiny: Tiny) -> None:
    assert tiny.build().captions() == written(tiny)
    built = tiny.build(SHUFFLED)
    first, second = built.captions(0), built.captions(1)
    assert first != written(tiny)
    assert first != second
    expected = [sorted(tags(caption)) for caption in written(tiny)]
    assert [sorted(tags(caption)) for caption in first] == expected
    assert [sorted(tags(caption)) for caption in second] == expected


@effect("data.captions.separator")
def test_only_the_separator_divides_tags(tiny: Tiny) -> None:
    # No caption holds a bar, so each is a single tag and there is nothing to shuffle.
    assert tiny.build(SHUFFLED, "data.captions.separator='|'").captions() == written(tiny)
    assert tiny.build(SHUFFLED).captions() != written(tiny)


@effect("data.captions.secondary_separator")
def test_tags_of_a_group_stay_together_and_in_order(tiny: Tiny, tmp_path: Path) -> None:
    folder = images(tmp_path, *["a;;;b, c"] * 8)
    assert tiny.build(folder).captions() == ["a;;;b, c"] * 8
    found = tiny.build(folder, SHUFFLED, "data.captions.secondary_separator=';;;'").captions()
    assert set(found) == {"a, b, c", "c, a, b"}


@effect("data.captions.keep_tags_separator")
def test_tags_around_the_marks_stay_at_both_ends(tiny: Tiny, tmp_path: Path) -> None:
    folder = images(tmp_path, *["a, b ||| c, d ||| e"] * 8)
    found = tiny.build(folder, SHUFFLED, "data.captions.keep_tags_separator='|||'").captions()
    assert set(found) == {"a, b, c, d, e", "a, b, d, c, e"}


@effect("data.captions.keep_tags")
def test_kept_tags_stay_in_front(tiny: Tiny) -> None:
    found = tiny.build(SHUFFLED, "data.captions.keep_tags=1").captions()
    assert [tags(caption)[0] for caption in found] == [tags(text)[0] for text in written(tiny)]
    assert found != written(tiny), "the others are still shuffled"


@effect("data.captions.tag_rule")
def test_tag_rule_of_sd_scripts_leaves_marks_and_empty_tags(tiny: Tiny, tmp_path: Path) -> None:
    own = [images(tmp_path, *["a;;;b,c,"] * 8), "data.captions.secondary_separator=';;;'"]
    theirs = [*own, "data.captions.tag_rule=sd_scripts"]
    assert set(tiny.build(*own).captions()) == {"a, b, c"}
    assert set(tiny.build(*theirs).captions()) == {"a;;;b,c,"}, "nothing is done to tags"
    kept = [*theirs, "data.captions.tag_dropout=1.0", "data.captions.keep_tags=3"]
    assert set(tiny.build(*kept).captions()) == {"a,b, c, "}, "the third tag is the empty one"


@effect("data.captions.tag_dropout")
def test_tag_dropout_of_one_leaves_the_kept_tags(tiny: Tiny) -> None:
    found = tiny.build("data.captions.tag_dropout=1.0", "data.captions.keep_tags=2").captions()
    assert found == [", ".join(tags(caption)[:2]) for caption in written(tiny)]


@effect("data.captions.caption_dropout")
def test_caption_dropout_of_one_leaves_no_text(tiny: Tiny) -> None:
    assert set(tiny.build("data.captions.caption_dropout=1.0").captions()) == {""}


@effect("data.captions.caption_dropout")
def test_caption_dropout_of_a_half_drops_some_and_others_the_next_time(tiny: Tiny) -> None:
    built = tiny.build("data.captions.caption_dropout=0.5", "data.repeats=5")
    dropped = [[caption == "" for caption in built.captions(epoch)] for epoch in (0, 1)]
    # 60 draws each: fewer than 15 or more than 45 happens once in 20 000 seeds.
    assert all(15 <= sum(epoch) <= 45 for epoch in dropped)
    assert dropped[0] != dropped[1]


@effect("data.captions.caption_dropout_every_n_epochs")
def test_every_second_epoch_is_trained_without_captions(tiny: Tiny) -> None:
    built = tiny.build("data.captions.caption_dropout_every_n_epochs=2")
    for epoch, captions in enumerate([written(tiny), [""] * 12, written(tiny), [""] * 12]):
        assert built.captions(epoch) == captions


@effect("data.captions.tag_warmup_steps", "data.captions.tag_warmup_min")
def test_tags_come_in_step_by_step(tiny: Tiny, tmp_path: Path) -> None:
    # Three steps an epoch with one image each; step s < 6 sees floor(s * (4 - m) / 6) + m of 4.
    folder = images(tmp_path, *["a, b, c, d"] * 3)
    options = (folder, "data.batch_size=1", "data.captions.tag_warmup_steps=6")
    assert texts(tiny, *options) == ["a", "a", "a, b", "a, b", "a, b, c", "a, b, c", *FULL]
    options = (*options, "data.captions.tag_warmup_min=0")
    assert texts(tiny, *options) == ["", "", "a", "a, b", "a, b", "a, b, c", *FULL]
    assert texts(tiny, folder, "data.batch_size=1") == FULL * 3


FULL = ["a, b, c, d"] * 3


def texts(tiny: Tiny, *overrides: str) -> list[str]:
    """Return the captions of the first nine steps in the order of training."""
    built = tiny.build(*overrides)
    return [caption for epoch in range(3) for batch in built.epoch(epoch)
            for caption in batch["captions"]]  # fmt: skip


RARE = ("zwx, red, circle", "zwx, red, square", "zwx, blue, circle", "odd, blue, circle")


@effect("data.captions.tag_min_count")
def test_tags_of_too_few_captions_are_left_out(tiny: Tiny, tmp_path: Path) -> None:
    built = tiny.build(images(tmp_path, *RARE), "data.captions.tag_min_count=2")
    expected = ["zwx, red, circle", "zwx, red", "zwx, blue, circle", "blue, circle"]
    assert built.captions() == expected


@effect("data.captions.tag_top_k")
def test_only_the_most_frequent_tags_are_used_and_those_kept(tiny: Tiny, tmp_path: Path) -> None:
    # circle 3, zwx 3, blue 2, red 2: the first by name of the last two makes it.
    folder = images(tmp_path, *RARE)
    built = tiny.build(folder, "data.captions.tag_top_k=3")
    assert built.captions() == ["zwx, circle", "zwx", "zwx, blue, circle", "blue, circle"]
    built = tiny.build(folder, "data.captions.tag_top_k=3", "data.captions.keep_tags=1")
    assert built.captions()[3] == "odd, blue, circle"


def weights(tiny: Tiny, *overrides: str) -> list[float]:
    """Return the loss weight of each image of a single step, as a multiple of the mean."""
    (batch,) = tiny.build(*overrides, "data.buckets.enabled=false", "data.batch_size=4").epoch()
    shares = dict(zip(batch["index"].tolist(), batch["loss_weight"].tolist(), strict=True))
    return [4 * shares[index] for index in range(4)]


@effect("data.captions.tag_balance")
def test_images_with_rare_tags_weigh_more(tiny: Tiny, tmp_path: Path) -> None:
    # Counts a 3, b 1: rarity 2/3, 1/3, 1/3 and 1; mean 7/12.
    folder = images(tmp_path, "a, b", "a", "a", "c")
    assert weights(tiny, folder) == pytest.approx([1, 1, 1, 1])
    found = weights(tiny, folder, "data.captions.tag_balance=1")
    assert found == pytest.approx([8 / 7, 4 / 7, 4 / 7, 12 / 7])


@effect("data.captions.tag_balance_limit")
def test_weights_of_rare_tags_are_limited(tiny: Tiny, tmp_path: Path) -> None:
    # 8/7, 4/7, 4/7, 12/7 clipped to [4/5, 5/4]: 8/7, 4/5, 4/5, 5/4 with mean 559/560.
    folder = images(tmp_path, "a, b", "a", "a", "c")
    found = weights(
        tiny, folder, "data.captions.tag_balance=1", "data.captions.tag_balance_limit=1.25"
    )
    assert found == pytest.approx([w * 560 / 559 for w in (8 / 7, 4 / 5, 4 / 5, 5 / 4)])


@effect("data.captions.tag_occurrence_file", "data.captions.tag_occurrence_order")
def test_the_run_folder_tells_how_often_tags_occur(tiny: Tiny, tmp_path: Path) -> None:
    folder = images(tmp_path, *RARE)
    assert not (tiny.build(folder).folder.path / "tags.txt").exists()
    by_count = tiny.build(folder, "data.captions.tag_occurrence_file=true").folder.path
    expected = "3\tcircle\n3\tzwx\n2\tblue\n2\tred\n1\todd\n1\tsquare\n"
    assert (by_count / "tags.txt").read_text(encoding="utf-8") == expected
    by_name = tiny.build(
        folder,
        "data.captions.tag_occurrence_file=true",
        "data.captions.tag_occurrence_order=name",
    ).folder.path
    lines = (by_name / "tags.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[1] for line in lines] == sorted(expected.split()[1::2])

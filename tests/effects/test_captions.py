"""What the batches carry in place of the caption as written, e.g. ``red, circle, grey ground``."""

from __future__ import annotations

from tests.effects.registry import effect
from tests.effects.runs import Tiny

SHUFFLED = "data.captions.shuffle_tags=true"


def written(tiny: Tiny) -> list[str]:
    files = sorted(tiny.images.glob("*.txt"))
    return [file.read_text(encoding="utf-8").strip() for file in files]


def tags(caption: str) -> list[str]:
    return caption.split(", ")


@effect("data.captions.prefix")
def test_prefix_stands_before_every_caption(tiny: Tiny) -> None:
    found = tiny.build("data.captions.prefix='my icon,'").captions()
    assert found == [f"my icon, {caption}" for caption in written(tiny)]


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


@effect("data.captions.keep_tags")
def test_kept_tags_stay_in_front(tiny: Tiny) -> None:
    found = tiny.build(SHUFFLED, "data.captions.keep_tags=1").captions()
    assert [tags(caption)[0] for caption in found] == [tags(text)[0] for text in written(tiny)]
    assert found != written(tiny), "the others are still shuffled"


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

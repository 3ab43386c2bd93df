"""The caption pipeline; expected texts are written out by hand."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralab.data.captions import CaptionPipeline

TAGS = ["one", "two", "three", "four", "five", "six"]
CAPTION = ", ".join(TAGS)


def visits(pipeline, count=400, caption=CAPTION):
    return [pipeline(caption, random.Random(seed)) for seed in range(count)]


def test_text_stays_as_written_without_tag_options():
    text = "a  cat ,, on a mat,"
    assert CaptionPipeline()(text, random.Random(0)) == text


def test_prefix_is_joined_with_one_space():
    assert CaptionPipeline(prefix="zwx style,")("a cat", random.Random(0)) == "zwx style, a cat"


def test_prefix_alone_stands_for_an_empty_caption():
    assert CaptionPipeline(prefix="zwx").fixed("") == "zwx"


def test_fixed_caption_ignores_everything_random():
    pipeline = CaptionPipeline("zwx", shuffle_tags=True, tag_dropout=1.0, caption_dropout=1.0)
    assert pipeline.fixed("b,a") == "zwx b,a"


def test_caption_dropout_of_one_always_returns_empty_caption():
    pipeline = CaptionPipeline(prefix="zwx", keep_tags=1, caption_dropout=1.0)
    assert set(visits(pipeline, 50)) == {""}


def test_caption_dropout_rate_is_that_asked_for():
    dropped = Counter(visits(CaptionPipeline(caption_dropout=0.25), 4000))[""]
    assert abs(dropped - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5  # five standard deviations


def test_shuffling_keeps_all_tags_and_reaches_all_orders():
    orders = set(visits(CaptionPipeline(shuffle_tags=True), 200, "a, b, c"))
    assert orders == {"a, b, c", "a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a"}


def test_leading_tags_are_never_moved_or_dropped():
    pipeline = CaptionPipeline(shuffle_tags=True, keep_tags=2, tag_dropout=0.9)
    assert all(caption.startswith("one, two") for caption in visits(pipeline))


def test_prefix_counts_as_leading_tag():
    pipeline = CaptionPipeline(prefix="zwx,", keep_tags=1, tag_dropout=1.0)
    assert pipeline(CAPTION, random.Random(0)) == "zwx"


def test_tag_dropout_rate_is_that_asked_for():
    kept = Counter(tag for text in visits(CaptionPipeline(tag_dropout=0.3), 1000)
                   for tag in text.split(", "))  # fmt: skip
    assert all(abs(kept[tag] - 700) < 5 * (1000 * 0.3 * 0.7) ** 0.5 for tag in TAGS)


def test_tag_dropout_keeps_the_order():
    places = [[TAGS.index(tag) for tag in text.split(", ")]
              for text in visits(CaptionPipeline(tag_dropout=0.5)) if text]  # fmt: skip
    assert all(place == sorted(place) for place in places)


def test_tag_dropout_of_one_with_nothing_kept_returns_empty_caption():
    assert CaptionPipeline(tag_dropout=1.0)(CAPTION, random.Random(0)) == ""


def test_empty_tags_disappear_when_tags_are_handled():
    pipeline = CaptionPipeline(shuffle_tags=True, keep_tags=9)
    assert pipeline(" a ,, b,c , ", random.Random(0)) == "a, b, c"


@pytest.mark.parametrize(("separator", "text"), [(";", "a; b c; d"), ("|", "a| b c| d")])
def test_other_separators_split_and_join(separator, text):
    pipeline = CaptionPipeline(separator=separator, shuffle_tags=True, keep_tags=9)
    assert pipeline(f"a{separator}b c{separator} d", random.Random(0)) == text


@given(st.integers())
def test_shuffling_does_not_change_which_tags_are_dropped(seed):
    plain = CaptionPipeline(tag_dropout=0.5)(CAPTION, random.Random(seed))
    mixed = CaptionPipeline(tag_dropout=0.5, shuffle_tags=True)(CAPTION, random.Random(seed))
    assert sorted(plain.split(", ")) == sorted(mixed.split(", "))


@given(st.integers())
def test_tag_dropout_does_not_change_the_order_of_the_rest(seed):
    whole = CaptionPipeline(shuffle_tags=True)(CAPTION, random.Random(seed)).split(", ")
    thin = CaptionPipeline(shuffle_tags=True, tag_dropout=0.5)(CAPTION, random.Random(seed))
    rest = thin.split(", ") if thin else []
    assert rest == [tag for tag in whole if tag in rest]


@given(st.integers())
def test_caption_dropout_changes_nothing_about_the_captions_it_leaves(seed):
    options = {"shuffle_tags": True, "tag_dropout": 0.5}
    plain = CaptionPipeline(**options)(CAPTION, random.Random(seed))
    dropping = CaptionPipeline(**options, caption_dropout=0.5)(CAPTION, random.Random(seed))
    assert dropping in {"", plain}


@given(st.integers())
def test_options_do_not_change_which_captions_are_dropped(seed):
    plain = CaptionPipeline(caption_dropout=0.5)(CAPTION, random.Random(seed))
    mixed = CaptionPipeline(shuffle_tags=True, keep_tags=1, tag_dropout=0.5, caption_dropout=0.5)
    assert (plain == "") == (mixed(CAPTION, random.Random(seed)) == "")


def test_same_stream_gives_the_same_caption():
    pipeline = CaptionPipeline(shuffle_tags=True, tag_dropout=0.5, caption_dropout=0.1)
    assert visits(pipeline) == visits(pipeline)

"""The caption pipeline; expected texts are written out by hand.

The figures marked sd-scripts are those of kohya-ss/sd-scripts, `library/train_util.py`,
`BaseDataset.process_caption`.
"""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralab.data.captions import CaptionPipeline, expand_wildcards, has_loose_brace

TAGS = ["one", "two", "three", "four", "five", "six"]
CAPTION = ", ".join(TAGS)


def visit(pipeline, *lines, seed=0, epoch=0, step=0):
    return pipeline(lines or (CAPTION,), random.Random(seed), epoch=epoch, step=step)


def visits(pipeline, *lines, count=400):
    return [visit(pipeline, *lines, seed=seed) for seed in range(count)]


def is_near(found, count, rate):
    """Say whether a binomial figure is within five standard deviations."""
    return abs(found - count * rate) < 5 * (count * rate * (1 - rate)) ** 0.5


# -- the text around the tags ----------------------------------------------------------------------


def test_text_stays_as_written_without_tag_options():
    text = "a  cat ,, on a mat,"
    assert visit(CaptionPipeline(), text) == text


def test_prefix_and_suffix_are_joined_with_one_space():
    # sd-scripts: prefix + " " + caption, caption + " " + suffix; commas are the user's.
    pipeline = CaptionPipeline(prefix="zwx style,", suffix=", 4k")
    assert visit(pipeline, "a cat") == "zwx style, a cat , 4k"


def test_prefix_and_suffix_alone_stand_for_an_empty_caption():
    assert CaptionPipeline(prefix="zwx").fixed(()) == "zwx"
    assert CaptionPipeline(prefix="zwx", suffix="4k").fixed(("",)) == "zwx 4k"


def test_first_line_is_taken_unless_several_are_asked_for():
    assert set(visits(CaptionPipeline(), "a cat", "an animal")) == {"a cat"}


def test_every_line_gets_its_share_of_visits_with_prefix_and_suffix():
    pipeline = CaptionPipeline(prefix="zwx,", suffix="!", multi_line=True)
    found = Counter(visits(pipeline, "a cat", "an animal", "fur", count=900))
    assert found.keys() == {"zwx, a cat !", "zwx, an animal !", "zwx, fur !"}
    assert all(is_near(number, 900, 1 / 3) for number in found.values())


def test_fixed_caption_ignores_everything_random():
    pipeline = CaptionPipeline(
        "zwx", "4k", multi_line=True, wildcards=True, shuffle_tags=True, tag_warmup_steps=9,
        tag_dropout=1.0, caption_dropout=1.0, caption_dropout_every_n_epochs=1,
    )  # fmt: skip
    assert pipeline.fixed(("b,{a|c}", "d")) == "zwx b,a 4k"


def test_fixed_caption_has_no_marks():
    pipeline = CaptionPipeline(keep_tags_separator="|||", secondary_separator=";;;")
    assert pipeline.fixed(("a, b ||| c;;;d, e",)) == "a, b, c, d, e"


# -- the rule of sd-scripts for tags; what it gives is written in its own notes -------------------


def sd(**options):
    return CaptionPipeline(tag_rule="sd_scripts", **options)


def test_sd_scripts_leaves_marks_where_nothing_is_done_to_tags():
    marks = {"keep_tags_separator": "|||", "secondary_separator": ";;;"}
    text = "a ||| b;;;c,, d"
    assert visit(sd(**marks), text) == sd(**marks).fixed((text,)) == text
    assert visit(CaptionPipeline(**marks), text) == "a, b, c, d"


def test_sd_scripts_shuffles_an_empty_tag_into_the_middle_and_counts_it():
    found = set(visits(sd(shuffle_tags=True), "a, b,", count=60))
    assert "a, , b" in found
    assert len(found) == 6
    # Of "a", "", "b" two are kept, the second is empty.
    assert visit(sd(keep_tags=2, tag_dropout=1.0), "a,, b") == "a, "


def test_sd_scripts_keeps_head_and_tail_without_empty_tags_and_joins_by_comma():
    pipeline = sd(keep_tags_separator="|||", tag_dropout=1.0, separator=";")
    assert visit(pipeline, "a; ||| b; c ||| ;d") == "a, d"


def test_sd_scripts_unites_a_group_with_the_bare_separator():
    pipeline = sd(secondary_separator=";;;", tag_dropout=1.0, keep_tags=1)
    assert visit(pipeline, "a;;;b, c") == "a,b"


def test_sd_scripts_puts_the_prefix_before_the_first_line_and_the_suffix_after_the_last():
    pipeline = sd(prefix="zwx,", suffix="!", multi_line=True)
    found = set(visits(pipeline, "a cat", "an animal", "fur"))
    assert found == {"zwx, a cat", "an animal", "fur !"}


def test_sd_scripts_loses_a_tag_of_warmup_to_rounding():
    options = {"tag_warmup_steps": 98, "tag_warmup_min": 0}
    # 49 * (2 / 98) is 0.9999999999999999 in floating point.
    assert visit(CaptionPipeline(**options), "a, b", step=49) == "a"
    assert visit(sd(**options), "a, b", step=49) == ""


@given(st.lists(st.sampled_from(TAGS), min_size=1, max_size=6), st.integers(0, 99))
def test_both_rules_do_the_same_to_plain_tags(tags, seed):
    options = {"shuffle_tags": True, "tag_dropout": 0.3, "keep_tags": 1, "prefix": "zwx,"}
    text = ", ".join(tags)
    ours = visit(CaptionPipeline(**options), text, seed=seed)
    assert visit(sd(**options), text, seed=seed) == ours


# -- wildcards -------------------------------------------------------------------------------------


def first(alternatives):
    return alternatives[0]


def last(alternatives):
    return alternatives[-1]


@pytest.mark.parametrize(
    ("text", "with_first", "with_last"),
    [
        ("a {red|blue|green} hat", "a red hat", "a green hat"),
        ("{a|b}{c|d}", "ac", "bd"),
        ("{a|}, b", "a, b", ", b"),
        ("{only}", "only", "only"),
        ("{{a|b}}", "{a|b}", "{a|b}"),
        ("{ {a|b} c| d}", " a c", " d"),
        ("{}", "{}", "{}"),
        ("{a|b", "{a|b", "{a|b"),
        ("no braces", "no braces", "no braces"),
    ],
)
def test_wildcards_become_the_chosen_alternative(text, with_first, with_last):
    assert expand_wildcards(text, first) == with_first
    assert expand_wildcards(text, last) == with_last


def test_wildcards_stay_unless_they_are_asked_for():
    assert visit(CaptionPipeline(), "a {red|blue} hat") == "a {red|blue} hat"


def test_alternatives_come_equally_often():
    found = Counter(visits(CaptionPipeline(wildcards=True), "{a|b|c}", count=900))
    assert found.keys() == {"a", "b", "c"}
    assert all(is_near(number, 900, 1 / 3) for number in found.values())


def test_wildcards_of_a_text_are_chosen_apart():
    assert len(set(visits(CaptionPipeline(wildcards=True), "{a|b}{c|d}"))) == 4


def test_wildcards_in_the_prefix_count():
    pipeline = CaptionPipeline(prefix="{a|b},", wildcards=True)
    assert set(visits(pipeline, "cat")) == {"a, cat", "b, cat"}


def test_tags_of_a_wildcard_are_tags():
    pipeline = CaptionPipeline(wildcards=True, tag_dropout=1.0, keep_tags=2)
    assert set(visits(pipeline, "{a, b|c, d}, e")) == {"a, b", "c, d"}


@pytest.mark.parametrize(
    ("text", "is_loose"),
    [("{a|b}", False), ("{ {a|b} c|d}", False), ("{{a}}", False), ("plain", False),
     ("{a|b", True), ("a|b}", True), ("{a|{b|c}", True)],
)  # fmt: skip
def test_a_brace_without_its_partner_is_found(text, is_loose):
    assert has_loose_brace(text) == is_loose


# -- caption dropout -------------------------------------------------------------------------------


def test_caption_dropout_of_one_always_returns_empty_caption():
    # sd-scripts: neither prefix nor suffix nor keep_tokens protect from it.
    pipeline = CaptionPipeline("zwx", "4k", keep_tags=1, caption_dropout=1.0)
    assert set(visits(pipeline, count=50)) == {""}


def test_caption_dropout_rate_is_that_asked_for():
    dropped = Counter(visits(CaptionPipeline(caption_dropout=0.25), count=4000))[""]
    assert is_near(dropped, 4000, 0.25)


def test_every_third_epoch_has_no_captions():
    # sd-scripts: n = 3 drops in the third, sixth and ninth epoch, counted from 1.
    pipeline = CaptionPipeline(prefix="zwx", caption_dropout_every_n_epochs=3)
    dropped = [epoch for epoch in range(10) if visit(pipeline, epoch=epoch) == ""]
    assert dropped == [2, 5, 8]


def test_dropout_by_epoch_and_by_rate_add_up():
    pipeline = CaptionPipeline(caption_dropout=0.5, caption_dropout_every_n_epochs=2)
    for epoch, rate in ((0, 0.5), (1, 1.0)):
        dropped = sum(visit(pipeline, seed=seed, epoch=epoch) == "" for seed in range(400))
        assert dropped == 400 if rate == 1 else is_near(dropped, 400, rate)


# -- tags that stay where they are -----------------------------------------------------------------


def test_leading_tags_are_never_moved_or_dropped():
    pipeline = CaptionPipeline(shuffle_tags=True, keep_tags=2, tag_dropout=0.9)
    assert all(caption.startswith("one, two") for caption in visits(pipeline))


def test_prefix_counts_as_leading_tag():
    # sd-scripts: keep_tokens is applied after caption_prefix is put in front.
    pipeline = CaptionPipeline(prefix="zwx,", keep_tags=1, tag_dropout=1.0)
    assert visit(pipeline) == "zwx"


def test_tags_before_the_mark_are_kept_in_place_of_keep_tags():
    # sd-scripts: keep_tokens_separator wins over keep_tokens where it occurs.
    pipeline = CaptionPipeline(keep_tags=1, keep_tags_separator="|||", tag_dropout=1.0)
    assert visit(pipeline, "a, b ||| c, d") == "a, b"
    assert visit(pipeline, "a, b, c, d") == "a"


def test_tags_after_a_second_mark_stay_at_the_end():
    pipeline = CaptionPipeline(keep_tags_separator="|||", shuffle_tags=True)
    found = set(visits(pipeline, "a ||| b, c ||| d, e"))
    assert found == {"a, b, c, d, e", "a, c, b, d, e"}


def test_marks_beyond_the_second_are_taken_out():
    pipeline = CaptionPipeline(keep_tags_separator="|||")
    assert visit(pipeline, "a|||b|||c|||d") == "a, b, c, d"


def test_marks_never_reach_the_text_encoder():
    # sd-scripts leaves `|||` in the text when no option that handles tags is on.
    pipeline = CaptionPipeline(keep_tags_separator="|||", secondary_separator=";;;")
    assert visit(pipeline, "a ||| b;;;c") == "a, b, c"
    assert visit(pipeline, "a,  b,") == "a,  b,", "without marks the text stays as written"


# -- tags that vary --------------------------------------------------------------------------------


def test_shuffling_keeps_all_tags_and_reaches_all_orders():
    orders = set(visits(CaptionPipeline(shuffle_tags=True), "a, b, c", count=200))
    assert orders == {"a, b, c", "a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a"}


def test_tag_dropout_rate_is_that_asked_for():
    kept = Counter(tag for text in visits(CaptionPipeline(tag_dropout=0.3), count=1000)
                   for tag in text.split(", "))  # fmt: skip
    assert all(is_near(kept[tag], 1000, 0.7) for tag in TAGS)


def test_tag_dropout_keeps_the_order():
    places = [[TAGS.index(tag) for tag in text.split(", ")]
              for text in visits(CaptionPipeline(tag_dropout=0.5)) if text]  # fmt: skip
    assert all(place == sorted(place) for place in places)


def test_tag_dropout_of_one_with_nothing_kept_returns_empty_caption():
    assert visit(CaptionPipeline(tag_dropout=1.0)) == ""


def test_empty_tags_disappear_when_tags_are_handled():
    # sd-scripts keeps them: "a, , b" there, and they count towards keep_tokens.
    pipeline = CaptionPipeline(shuffle_tags=True, keep_tags=9)
    assert visit(pipeline, " a ,, b,c , ") == "a, b, c"


@pytest.mark.parametrize(("separator", "text"), [(";", "a; b c; d"), ("|", "a| b c| d")])
def test_other_separators_split_and_join(separator, text):
    # sd-scripts always joins with a comma.
    pipeline = CaptionPipeline(separator=separator, shuffle_tags=True, keep_tags=9)
    assert visit(pipeline, f"a{separator}b c{separator} d") == text


def test_tags_of_a_group_move_and_go_together():
    pipeline = CaptionPipeline(secondary_separator=";;;", shuffle_tags=True, tag_dropout=0.5)
    found = set(visits(pipeline, "a;;;b, c"))
    assert found == {"a, b, c", "c, a, b", "a, b", "c", ""}


def test_a_group_counts_as_one_leading_tag():
    pipeline = CaptionPipeline(secondary_separator=";;;", keep_tags=1, tag_dropout=1.0)
    assert visit(pipeline, "a;;;b, c") == "a, b"


@pytest.mark.parametrize(
    ("step", "count"),
    # sd-scripts: floor(step * (n - min) / S) + min with n = 6, min = 2, S = 10.
    [(0, 2), (1, 2), (2, 2), (3, 3), (4, 3), (5, 4), (7, 4), (8, 5), (9, 5), (10, 6), (99, 6)],
)
def test_tags_come_in_over_the_warm_up(step, count):
    pipeline = CaptionPipeline(tag_warmup_steps=10, tag_warmup_min=2)
    assert visit(pipeline, step=step) == ", ".join(TAGS[:count])


def test_warm_up_leaves_kept_tags_alone():
    pipeline = CaptionPipeline(tag_warmup_steps=10, tag_warmup_min=0, keep_tags=2)
    assert visit(pipeline, step=0) == "one, two"
    assert visit(pipeline, step=5) == "one, two, three, four"


def test_fewer_tags_than_the_warm_up_begins_with_are_all_there():
    pipeline = CaptionPipeline(tag_warmup_steps=10, tag_warmup_min=4)
    assert visit(pipeline, "a, b") == "a, b"


def test_warm_up_has_no_rounding_error():
    # 49 * (2 / 98) is below 1 in floating point, so sd-scripts shows no tag here.
    pipeline = CaptionPipeline(tag_warmup_steps=98, tag_warmup_min=0)
    assert visit(pipeline, "a, b", step=49) == "a"


def test_warm_up_takes_the_first_tags_as_written():
    pipeline = CaptionPipeline(tag_warmup_steps=10, tag_warmup_min=2, shuffle_tags=True)
    assert set(visits(pipeline)) == {"one, two", "two, one"}


def test_removed_tags_go_unless_they_are_kept():
    pipeline = CaptionPipeline(keep_tags=1, removed_tags=frozenset({"one", "three"}))
    assert visit(pipeline) == "one, two, four, five, six"


def test_removed_tags_go_from_groups():
    pipeline = CaptionPipeline(secondary_separator=";;;", removed_tags=frozenset("bc"))
    assert visit(pipeline, "a;;;b, c, d") == "a, d"


def test_warm_up_counts_the_tags_that_remain():
    pipeline = CaptionPipeline(tag_warmup_steps=10, tag_warmup_min=2,
                               removed_tags=frozenset({"one"}))  # fmt: skip
    assert visit(pipeline) == "two, three"


def test_written_tags_are_those_of_the_lines_in_use():
    marks = {"keep_tags_separator": "|||", "secondary_separator": ";;;"}
    lines = ("a, b ||| c;;;d", "b, e")
    assert CaptionPipeline("zwx,", **marks).written_tags(lines) == ["a", "b", "c", "d"]
    found = CaptionPipeline(multi_line=True, **marks).written_tags(lines)
    assert found == ["a", "b", "c", "d", "e"]


# -- one option changes nothing about the others ---------------------------------------------------


def whole(seed):
    """All tags in the order of this visit."""
    return visit(CaptionPipeline(shuffle_tags=True), seed=seed).split(", ")


@given(st.integers())
def test_shuffling_does_not_change_which_tags_are_dropped(seed):
    plain = visit(CaptionPipeline(tag_dropout=0.5), seed=seed)
    mixed = visit(CaptionPipeline(tag_dropout=0.5, shuffle_tags=True), seed=seed)
    assert sorted(plain.split(", ")) == sorted(mixed.split(", "))


@given(
    st.integers(),
    st.sampled_from([
        {"tag_dropout": 0.5},
        {"tag_warmup_steps": 10, "tag_warmup_min": 3},
        {"removed_tags": frozenset({"two", "five"})},
    ]),
)  # fmt: skip
def test_what_takes_tags_out_does_not_change_the_order_of_the_rest(seed, options):
    text = visit(CaptionPipeline(shuffle_tags=True, **options), seed=seed)
    rest = text.split(", ") if text else []
    assert rest == [tag for tag in whole(seed) if tag in rest]


@given(st.integers())
def test_warm_up_and_removal_do_not_change_which_of_the_rest_are_dropped(seed):
    dropped = set(TAGS) - set(visit(CaptionPipeline(tag_dropout=0.5), seed=seed).split(", "))
    removed = frozenset({"two", "five"})
    thin = CaptionPipeline(tag_dropout=0.5, removed_tags=removed)
    assert set(visit(thin, seed=seed).split(", ")) - {""} == set(TAGS) - dropped - removed
    early = CaptionPipeline(tag_dropout=0.5, tag_warmup_steps=10, tag_warmup_min=3)
    assert set(visit(early, seed=seed).split(", ")) - {""} == set(TAGS[:3]) - dropped


@given(st.integers())
def test_lines_and_wildcards_are_chosen_alike_whatever_is_done_to_tags(seed):
    lines = ("{a|b}, c, d", "{e|f}, g, h")
    plain = CaptionPipeline(multi_line=True, wildcards=True)
    mixed = CaptionPipeline(multi_line=True, wildcards=True, shuffle_tags=True)
    found = visit(plain, *lines, seed=seed).split(", ")
    assert sorted(visit(mixed, *lines, seed=seed).split(", ")) == sorted(found)


@given(st.integers())
def test_lines_and_wildcards_do_not_change_what_is_done_to_tags(seed):
    options = {"shuffle_tags": True, "tag_dropout": 0.5}
    plain = visit(CaptionPipeline(**options), seed=seed)
    more = CaptionPipeline(multi_line=True, wildcards=True, **options)
    assert visit(more, CAPTION, CAPTION, seed=seed) == plain
    assert visit(more, "{one|1}, two, three, four, five, six", seed=seed).replace("1", "one") == (
        plain
    )


@given(st.integers(), st.booleans())
def test_choice_of_the_line_does_not_depend_on_wildcards(seed, wildcards):
    pipeline = CaptionPipeline(multi_line=True, wildcards=wildcards)
    plain = visit(CaptionPipeline(multi_line=True), "a", "b", "c", seed=seed)
    assert visit(pipeline, "a", "b", "c", seed=seed) == plain


@given(st.integers())
def test_caption_dropout_changes_nothing_about_the_captions_it_leaves(seed):
    options = {"shuffle_tags": True, "tag_dropout": 0.5, "wildcards": True, "multi_line": True}
    lines = ("{a|b}, c, d", "e, f, g")
    plain = visit(CaptionPipeline(**options), *lines, seed=seed)
    dropping = CaptionPipeline(**options, caption_dropout=0.5, caption_dropout_every_n_epochs=2)
    assert visit(dropping, *lines, seed=seed) in {"", plain}
    assert visit(dropping, *lines, seed=seed, epoch=1) == ""


@given(st.integers())
def test_options_do_not_change_which_captions_are_dropped(seed):
    plain = CaptionPipeline(caption_dropout=0.5)
    mixed = CaptionPipeline(
        "zwx", "4k", multi_line=True, wildcards=True, shuffle_tags=True, keep_tags=1,
        tag_warmup_steps=10, tag_dropout=0.5, caption_dropout=0.5,
    )  # fmt: skip
    assert (visit(plain, seed=seed) == "") == (visit(mixed, CAPTION, "a", seed=seed) == "")


def test_same_stream_gives_the_same_caption():
    pipeline = CaptionPipeline(
        multi_line=True, wildcards=True, shuffle_tags=True, tag_dropout=0.5, caption_dropout=0.1
    )
    lines = ("{a|b}, c, d", "{e|f}, g, h")
    assert visits(pipeline, *lines) == visits(pipeline, *lines)

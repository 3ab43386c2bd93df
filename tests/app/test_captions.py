"""What is counted over all captions, on records made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from loralab.app.captions import caption_rows, check_wildcards, tag_counts, with_tag_options
from loralab.config.data_records import CaptionRecord
from loralab.data.buckets import Bucket
from loralab.data.captions import CaptionPipeline
from loralab.data.crop import plan_crop
from loralab.data.dataset import Item
from loralab.data.index import ImageRecord
from loralab.data.sources import Source
from loralab.errors import DataError


def source(*captions: tuple[str, ...], **options: object) -> Source:
    records = tuple(
        ImageRecord(Path(f"{number}.png"), 64, 64, lines, f"{number:032x}", repeats=3, weight=2.0)
        for number, lines in enumerate(captions)
    )
    return Source("images", records, captions=CaptionPipeline(**options))  # type: ignore[arg-type]


def items(origin: Source) -> list[Item]:
    plan = plan_crop(64, 64, Bucket(64, 64))
    return [Item(record, 0, plan, origin) for record in origin.records]


def test_without_options_nothing_changes() -> None:
    before = source(("a, b",), ("a",))
    after = with_tag_options(before, CaptionRecord())
    assert (after.records, after.captions) == (before.records, before.captions)


def test_counts_are_of_images_and_of_the_lines_in_use() -> None:
    captions = (("a, b", "a, c"), ("a, a",))
    assert tag_counts([source(*captions)]) == {"a": 2, "b": 1}
    assert tag_counts([source(*captions, multi_line=True)]) == {"a": 2, "b": 1, "c": 1}
    both = [source(("a; b",), separator=";"), source(("a, c",))]
    assert tag_counts(both) == {"a": 2, "b": 1, "c": 1}


def test_rare_tags_are_removed_but_not_those_that_prefix_and_suffix_add() -> None:
    before = source(("zwx, a",), ("a, b, 4k",), prefix="zwx,", suffix=", 4k")
    after = with_tag_options(before, CaptionRecord(tag_min_count=2))
    assert after.captions.removed_tags == {"b"}


def test_weights_multiply_those_of_the_source_and_have_mean_one() -> None:
    # Counts a 3, b 1: rarity 2/3, 1/3, 1/3.
    after = with_tag_options(source(("a, b",), ("a",), ("a",)), CaptionRecord(tag_balance=1.0))
    assert [record.weight for record in after.records] == pytest.approx([3.0, 1.5, 1.5])


def test_removed_tags_weigh_nothing() -> None:
    options = CaptionRecord(tag_balance=1.0, tag_min_count=2)
    after = with_tag_options(source(("a, b",), ("a",), ("a",)), options)
    assert [record.weight for record in after.records] == pytest.approx([2.0] * 3)


def test_the_plan_says_that_lines_are_not_used() -> None:
    captions = (("a", "b"), ("c",), ("d", "e", "f"))
    ((label, text),) = caption_rows(items(source(*captions)))
    assert label == "captions"
    assert text.startswith("2 with more than one line, of which only the first is used")
    assert "data.captions.multi_line=true" in text
    assert caption_rows(items(source(*captions, multi_line=True))) == []


def test_the_plan_says_how_many_tags_are_left_out() -> None:
    options = CaptionRecord(tag_min_count=2)
    origin = with_tag_options(source(("a, b",), ("a, c",)), options)
    assert caption_rows(items(origin)) == [("tags", "2 of 3 are too rare and left out")]
    assert caption_rows(items(replace(origin, is_prior=True))) == []


def test_every_open_wildcard_of_the_lines_in_use_is_named() -> None:
    captions = (("{a|b", "c}"), ("{a|b}",), ("a}}", "{"))
    with pytest.raises(DataError) as caught:
        check_wildcards(source(*captions, wildcards=True))
    assert [problem.key for problem in caught.value.problems] == ["0.png"]
    with pytest.raises(DataError) as caught:
        check_wildcards(source(*captions, wildcards=True, multi_line=True))
    assert [problem.key for problem in caught.value.problems] == ["0.png", "0.png", "2.png"]
    check_wildcards(source(*captions))

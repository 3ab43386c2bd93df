"""Statistics of tags; every figure is worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralab.data.tags import (
    balanced_weights,
    count_tags,
    filter_tags,
    split_tags,
    tag_occurrence,
)

CAPTIONS = ["red, circle", "red, square, red", "blue , circle,", "Red", ""]


def test_tags_are_stripped_and_empty_ones_left_out():
    assert split_tags(" a ,, b c,d,", ",") == ["a", "b c", "d"]
    assert split_tags("a b", " ") == ["a", "b"]


def test_a_tag_counts_once_a_caption_and_case_matters():
    counts = count_tags(CAPTIONS)
    assert counts == {"red": 2, "circle": 2, "square": 1, "blue": 1, "Red": 1}


def test_tags_that_occur_too_rarely_are_filtered():
    counts = {"a": 3, "b": 2, "c": 1}
    assert filter_tags(counts, min_count=1) == frozenset()
    assert filter_tags(counts, min_count=2) == {"c"}
    assert filter_tags(counts, min_count=4) == {"a", "b", "c"}


def test_only_the_most_frequent_tags_stay_and_equals_by_name():
    counts = {"d": 1, "b": 2, "c": 2, "a": 5}
    assert filter_tags(counts, top_k=2) == {"c", "d"}
    assert filter_tags(counts, top_k=9) == frozenset()
    assert filter_tags(counts, top_k=3, min_count=3) == {"b", "c", "d"}


def test_occurrence_is_listed_by_count_then_name():
    counts = {"b": 1, "c": 10, "a": 1, "B": 2}
    assert tag_occurrence(counts) == "10\tc\n2\tB\n1\ta\n1\tb\n"


def test_occurrence_is_listed_by_code_point():
    # As WRAP's sort_tag_occurrence_alphabetically: upper case before lower.
    assert tag_occurrence({"b": 1, "a": 1, "B": 2}, "name") == "2\tB\n1\ta\n1\tb\n"


def test_weights_of_a_worked_example():
    # c(a) = 3, c(b) = 1. Rarity: (1/3 + 1)/2 = 2/3, 1/3, 1/3; mean 4/9; weights 3/2, 3/4, 3/4.
    assert balanced_weights(["a, b", "a", "a"]) == pytest.approx([1.5, 0.75, 0.75])


def test_strength_is_the_power_of_the_count():
    # c(a) = 4, c(b) = 1. Rarity at 1/2: 1/2 four times, 1; mean 0.6; weights 5/6 and 5/3.
    weights = balanced_weights(["a", "a", "a", "a", "b"], strength=0.5)
    assert weights == pytest.approx([5 / 6] * 4 + [5 / 3])
    assert balanced_weights(CAPTIONS, strength=0) == pytest.approx([1] * 5)


def test_limit_bounds_the_weights_before_the_mean_is_restored():
    # Rarity 1/9 nine times and 1; mean 0.2; weights 5/9 and 5; clipped to 5/9 and 2; mean 0.7.
    weights = balanced_weights(["a"] * 9 + ["b"], limit=2)
    assert weights == pytest.approx([5 / 9 / 0.7] * 9 + [2 / 0.7])


def test_a_caption_without_tags_has_the_mean_weight():
    assert balanced_weights(["a, b", "a", "a", ""]) == pytest.approx([1.5, 0.75, 0.75, 1])
    assert balanced_weights(["", ""]) == [1, 1]


@given(
    st.lists(st.lists(st.sampled_from("abcdef"), max_size=4).map(",".join), min_size=1),
    st.floats(0, 1),
    st.floats(1, 10),
)
def test_weights_are_positive_with_mean_one(captions, strength, limit):
    weights = balanced_weights(captions, strength=strength, limit=limit)
    assert sum(weights) / len(captions) == pytest.approx(1)
    assert all(1 / limit**2 - 1e-9 <= weight <= limit**2 + 1e-9 for weight in weights)

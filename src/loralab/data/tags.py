"""Tags of a whole set of captions: how often they occur, which are rare, what that weighs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

_ORDERS: dict[str, Callable[[tuple[str, int]], tuple[int, str]]] = {
    "count": lambda entry: (-entry[1], entry[0]),
    "name": lambda entry: (0, entry[0]),
}


def split_tags(text: str, separator: str) -> list[str]:
    """Return the tags of a text in order, stripped; empty ones are left out."""
    return [tag for piece in text.split(separator) if (tag := piece.strip())]


def count_tags(captions: Iterable[str], separator: str = ",") -> Counter[str]:
    """Return in how many captions each tag occurs; twice in one caption counts once."""
    return Counter(tag for caption in captions for tag in set(split_tags(caption, separator)))


def filter_tags(
    counts: Mapping[str, int], *, top_k: int | None = None, min_count: int = 1
) -> frozenset[str]:
    """Return the tags that a limit on frequency takes out.

    Args:
        counts: In how many captions each tag occurs.
        top_k: How many of the most frequent tags stay; among equals the first by name. None: all.
        min_count: In how many captions a tag must occur to stay.
    """
    assert top_k is None or top_k >= 1, top_k
    ranked = sorted(counts.items(), key=_ORDERS["count"])
    stay = {tag for tag, count in ranked[:top_k] if count >= min_count}
    return frozenset(counts.keys() - stay)


def tag_occurrence(counts: Mapping[str, int], by: str = "count") -> str:
    """Return the text of a tag-occurrence file: one line per tag, ``count<TAB>tag``.

    Args:
        counts: In how many captions each tag occurs.
        by: ``count``, the most frequent first and equals by name, or ``name``, by code point.
    """
    entries = sorted(counts.items(), key=_ORDERS[by])
    return "".join(f"{count}\t{tag}\n" for tag, count in entries)


def balanced_weights(
    captions: Sequence[str], separator: str = ",", *, strength: float = 1.0, limit: float = 4.0
) -> list[float]:
    """Return a loss weight for each caption that is high where its tags are rare; the mean is 1.

    With c(t) the number of captions that hold tag t, the raw weight of a caption is the mean of
    c(t) ** -strength over its tags. Raw weights are divided by their mean, clipped to
    [1/limit, limit] and divided by their mean again. A caption without tags weighs 1 before that.

    Args:
        captions: Captions made of tags.
        separator: What stands between tags.
        strength: 0 gives equal weights, 1 lets a tag that is twice as rare weigh twice as much.
        limit: At least 1; so that one odd tag does not rule the loss.
    """
    assert strength >= 0, strength
    assert limit >= 1, limit
    counts = count_tags(captions, separator)
    rarities = [
        [counts[tag] ** -strength for tag in set(split_tags(caption, separator))]
        for caption in captions
    ]
    raw = [fmean(own) if own else None for own in rarities]
    mean = fmean([weight for weight in raw if weight is not None] or [1.0])
    clipped = [1.0 if w is None else min(max(w / mean, 1 / limit), limit) for w in raw]
    return [weight / fmean(clipped) for weight in clipped]

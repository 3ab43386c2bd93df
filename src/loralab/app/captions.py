"""What the caption options ask about all captions together: which tags are rare, what is unused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from loralab.config.data_records import CaptionRecord
from loralab.data.captions import has_loose_brace
from loralab.data.dataset import Item
from loralab.data.sources import Source
from loralab.data.tags import balanced_weights, count_tags, filter_tags, split_tags
from loralab.errors import DataError, Problem


def check_wildcards(source: Source) -> None:
    """Compare the braces of all captions that visits may choose.

    Raises:
        DataError: With every caption that has a brace without its partner.
    """
    if not source.captions.wildcards:
        return
    problems = [
        Problem(
            str(record.path),
            f"The caption of {record.path} has a brace without its partner ({line}); close the "
            "wildcard, or double a brace that is meant literally.",
        )
        for record in source.records
        for line in source.captions.used_lines(record.captions)
        if has_loose_brace(line)
    ]
    if problems:
        raise DataError(*problems)


def with_tag_options(source: Source, options: CaptionRecord) -> Source:
    """Return the source with its rare tags removed and its images weighed, as the options ask.

    Weights count the tags that remain.
    """
    captions, records = source.captions, source.records
    removed = filter_tags(
        tag_counts([source]), top_k=options.tag_top_k, min_count=options.tag_min_count
    )
    added = [split_tags(text, captions.separator) for text in (captions.prefix, captions.suffix)]
    removed = removed.difference(*added)
    if options.tag_balance:
        weights = balanced_weights(
            [_written(source, record.captions, removed) for record in records],
            captions.separator,
            strength=options.tag_balance,
            limit=options.tag_balance_limit,
        )
        records = tuple(
            replace(record, weight=record.weight * weight)
            for record, weight in zip(records, weights, strict=True)
        )
    return replace(source, records=records, captions=replace(captions, removed_tags=removed))


def training_sources(items: Sequence[Item]) -> list[Source]:
    """Return the sources of training items, class images left out, each once."""
    sources = {id(item.source): item.source for item in items if not item.source.is_prior}
    return list(sources.values())


def tag_counts(sources: Iterable[Source]) -> Counter[str]:
    """Return how many images have each tag; repeats do not count, removed tags do."""
    counts: Counter[str] = Counter()
    for source in sources:
        texts = [_written(source, record.captions) for record in source.records]
        counts += count_tags(texts, source.captions.separator)
    return counts


def caption_rows(items: Sequence[Item]) -> list[tuple[str, str]]:
    """Return what the plan says about captions: text that is not used, and why."""
    sources = training_sources(items)
    rows = []
    longer = sum(
        len(record.captions) > len(source.captions.used_lines(record.captions))
        for source in sources
        for record in source.records
    )
    if longer:
        rows.append((
            "captions",
            f"{longer} with more than one line, of which only the first is used; "
            "data.captions.multi_line=true chooses one on every visit",
        ))  # fmt: skip
    removed = sum(len(source.captions.removed_tags) for source in sources)
    if removed:
        known = sum(len(tag_counts([source])) for source in sources)
        rows.append(("tags", f"{removed} of {known} are too rare and left out"))
    return rows


def _written(
    source: Source, caption: tuple[str, ...], removed: frozenset[str] = frozenset()
) -> str:
    tags = source.captions.written_tags(caption)
    return source.captions.separator.join(tag for tag in tags if tag not in removed)

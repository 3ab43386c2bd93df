"""Rules of caption options, those of every source included."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from loralab.config.data_records import CaptionRecord
from loralab.config.records import RunConfig
from loralab.config.source_records import caption_options, given_sources
from loralab.errors import Problem


def separators_differ(config: RunConfig) -> Iterator[Problem]:
    """Refuse separators that are empty, span lines or are part of one another."""
    names = ("separator", "secondary_separator", "keep_tags_separator")
    for group, captions in _caption_groups(config).items():
        texts = {f"{group}.{name}": getattr(captions, name) for name in names}
        for key, text in texts.items():
            if "\n" in text or (not text and key.endswith(".separator")):
                yield Problem(
                    key, f"{key} is {text!r}; it must be text on one line, for example a comma."
                )
        for one, other in combinations([key for key, text in texts.items() if text], 2):
            if texts[one] in texts[other] or texts[other] in texts[one]:
                yield Problem(
                    other,
                    f"{other} is {texts[other]!r} and {one} is {texts[one]!r}; neither may contain "
                    "the other. Use for example ';;;' and '|||'.",
                )


def tags_are_known_beforehand(config: RunConfig) -> Iterator[Problem]:
    """Refuse to count tags that wildcards make."""
    for group, captions in _caption_groups(config).items():
        counted = {
            "tag_top_k": captions.tag_top_k is not None,
            "tag_min_count": captions.tag_min_count > 1,
            "tag_balance": captions.tag_balance > 0,
        }
        for name in (name for name, is_on in counted.items() if is_on and captions.wildcards):
            yield Problem(
                f"{group}.{name}",
                f"{group}.{name} is {getattr(captions, name)} and {group}.wildcards is true, but "
                "tags that wildcards make cannot be counted beforehand; give one of them.",
            )


def tag_file_is_of_the_run(config: RunConfig) -> Iterator[Problem]:
    """Refuse a tag-occurrence file of one source."""
    for group, source in given_sources(config.data).items():
        for name in ("tag_occurrence_file", "tag_occurrence_order"):
            if name in source.captions:
                yield Problem(
                    f"{group}.captions.{name}",
                    f"{group}.captions.{name} is {source.captions[name]}, but a run has one tag "
                    f"file for all sources; set data.captions.{name} instead.",
                )


def _caption_groups(config: RunConfig) -> dict[str, CaptionRecord]:
    own = {
        f"{group}.captions": caption_options(source, config.data)
        for group, source in given_sources(config.data).items()
        if source.captions
    }
    return {"data.captions": config.data.captions, **own}


CAPTION_RULES = (separators_differ, tags_are_known_beforehand, tag_file_is_of_the_run)

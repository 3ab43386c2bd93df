"""Captions longer than the context: what the options want done, and how long the context gets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from loralab.app.models import model_place
from loralab.app.sources import Sources
from loralab.config.model_records import CaptionOverflow
from loralab.config.records import RunConfig
from loralab.data.index import ImageRecord
from loralab.data.sources import Source
from loralab.errors import ConfigError, Problem
from loralab.models.caption_counter import CaptionCounter
from loralab.models.family import FamilySpec, ModelFacts

NAMED = 5  # files that a message names


@dataclass(frozen=True)
class FittedCaptions:
    """The images with captions that fit.

    Attributes:
        sources: Without what was skipped.
        rows: Rows of tokens that the context has.
        note: What the plan says about captions that were too long; empty if none was.
    """

    sources: Sources
    rows: int
    note: str


def fit_captions(
    config: RunConfig, sources: Sources, spec: FamilySpec, facts: ModelFacts
) -> FittedCaptions:
    """Measure every line that visits may choose, with prefix and suffix.

    Wildcards are measured with all their alternatives, since each may come up.

    Raises:
        ConfigError: ``model.max_tokens`` does not fit the encoder, or a caption is too long and
            ``model.caption_overflow`` is ``error``, or nothing is left.
    """
    limit, inside = config.model.max_tokens, facts.text[0].row_length - 2
    if limit % inside:
        text = f"model.max_tokens is {limit}; it must be a multiple of {inside}. Use {inside}."
        raise ConfigError(Problem("model.max_tokens", text))
    count = CaptionCounter(
        model_place(config), spec, facts, prompt_weights=config.model.prompt_weights
    )
    lengths = {
        id(record): max(count(_texts(source, record)), default=0)
        for source in _all_sources(sources)
        for record in source.records
    }
    longest = max(lengths.values(), default=0)
    if longest <= limit:
        return FittedCaptions(sources, limit // inside, "")
    too_long = [
        record
        for source in _all_sources(sources)
        for record in source.records
        if lengths[id(record)] > limit
    ]
    found = f"{len(too_long)} of {len(lengths)} captions are longer than {limit} tokens"
    action = config.model.caption_overflow
    if action is CaptionOverflow.chunk:
        rows = ceil(longest / inside)
        return FittedCaptions(sources, rows, f"{found}; the context has {rows * inside} for all")
    if action is CaptionOverflow.truncate:
        return FittedCaptions(sources, limit // inside, f"{found}; their ends are cut")
    if action is CaptionOverflow.skip:
        kept = _without(sources, too_long, limit)
        if any(source.records for source in kept.training):
            return FittedCaptions(kept, limit // inside, f"{found}; their images are skipped")
    names = ", ".join(record.path.name for record in too_long[:NAMED])
    more = ", ..." if len(too_long) > NAMED else ""
    text = (
        f"model.caption_overflow is {action.name}, and {found} ({names}{more}; the longest has "
        f"{longest}); shorten them, raise model.max_tokens, or use chunk."
    )
    raise ConfigError(Problem("model.caption_overflow", text))


def _texts(source: Source, record: ImageRecord) -> list[str]:
    lines = source.captions.used_lines(record.captions)
    plain = replace(source.captions, wildcards=False)
    return [plain.fixed((line,)) for line in lines]


def _all_sources(sources: Sources) -> list[Source]:
    return [*sources.training, *([sources.prior] if sources.prior else []), *sources.held_out]


def _without(sources: Sources, too_long: list[ImageRecord], limit: int) -> Sources:
    gone = {id(record) for record in too_long}
    reasons = [
        Problem(str(r.path), f"The caption of {r.path} is longer than {limit} tokens.")
        for r in too_long
    ]

    def kept(source: Source) -> Source:
        return replace(source, records=tuple(r for r in source.records if id(r) not in gone))

    return replace(
        sources,
        training=tuple(kept(source) for source in sources.training),
        prior=kept(sources.prior) if sources.prior else None,
        held_out=tuple(kept(source) for source in sources.held_out),
        skipped=(*sources.skipped, *reasons),
    )

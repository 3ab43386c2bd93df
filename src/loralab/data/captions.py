"""What the text encoder is told on one visit of an image.

The stages and their order are those of sd-scripts (`library/train_util.py`,
`BaseDataset.process_caption`). Where that loses text or leaves marks behind, we do not, unless
``tag_rule`` is ``sd_scripts``, which restores all but the last of these:

- Marks (``keep_tags_separator``, ``secondary_separator``) never stay in the text. There they do
  when no option that handles tags is on.
- Empty tags, as after a trailing comma, disappear. There they are counted by ``keep_tokens`` and
  shuffled into the middle.
- Tags are joined with the separator that they were split at. There always with a comma.
- Prefix and suffix surround every line. There the prefix is part of the first line of several and
  the suffix of the last.
- Several lines and wildcards are two options. There one switch turns on both.
- The length of tag warm-up is computed in whole numbers. There a rounding error loses a tag, as
  with 49 of 98 steps and 2 tags.
- The epoch and the step come with the visit. There a loader process works with those of an earlier
  batch, and an epoch of 0 drops captions.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from loralab.data.tags import split_tags

_WILDCARD = re.compile(r"\{([^{}]+)\}")
_OPENING, _CLOSING = "\0", "\1"  # stand for literal braces meanwhile; no text file holds them


@dataclass(frozen=True)
class CaptionPipeline:
    """Turns the caption of an image into the text of one visit.

    The stages, in this order: caption dropout; choice of a line; prefix and suffix; wildcards;
    removed tags; tag warm-up; tag dropout; tag order. What one stage draws does not depend on which
    others are on, so that switching one on changes nothing about the others.

    Attributes:
        prefix: Text put before every caption with a space between; it brings its own comma.
        suffix: Text put after every caption in the same way.
        multi_line: Choose one of the caption's lines on every visit; otherwise take the first.
        wildcards: Replace each ``{a|b|c}`` by one of its alternatives on every visit. Groups may
            stand in groups; ``{{`` and ``}}`` give braces.
        separator: What stands between tags.
        secondary_separator: What stands between tags that are moved and dropped as one; "" is off.
        shuffle_tags: Put the tags in a random order on every visit.
        keep_tags: How many leading tags stay first and are never dropped; those of the prefix
            count.
        keep_tags_separator: A mark; where it occurs, the tags before it are kept in place of
            ``keep_tags``, and so are those after a second one, at the end. "" is off.
        tag_rule: ``clean``, or ``sd_scripts`` for the differences at the head of this file.
        removed_tags: Tags that are left out, unless they are kept.
        tag_warmup_steps: Optimizer steps S over which the tags come in: of n tags that are not
            kept, step s < S sees the first floor(s (n - m) / S) + m, with m = ``tag_warmup_min``.
        tag_warmup_min: How many of them the first step sees.
        tag_dropout: Probability that a tag that is not kept is left out, in [0, 1].
        caption_dropout: Probability that the whole text, prefix included, becomes "", in [0, 1].
        caption_dropout_every_n_epochs: The whole text becomes "" in every n-th epoch, for n = 3 in
            the third, the sixth and so on; None is off.
    """

    prefix: str = ""
    suffix: str = ""
    multi_line: bool = False
    wildcards: bool = False
    separator: str = ","
    secondary_separator: str = ""
    shuffle_tags: bool = False
    keep_tags: int = 0
    keep_tags_separator: str = ""
    tag_rule: str = "clean"
    removed_tags: frozenset[str] = field(default=frozenset(), repr=False)
    tag_warmup_steps: int = 0
    tag_warmup_min: int = 1
    tag_dropout: float = 0.0
    caption_dropout: float = 0.0
    caption_dropout_every_n_epochs: int | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        assert self.separator, "tags need a separator"
        assert self.tag_rule in ("clean", "sd_scripts"), self.tag_rule
        assert self.keep_tags >= 0, self.keep_tags
        assert self.tag_warmup_steps >= 0, self.tag_warmup_steps
        assert self.tag_warmup_min >= 0, self.tag_warmup_min
        assert 0 <= self.tag_dropout <= 1, self.tag_dropout
        assert 0 <= self.caption_dropout <= 1, self.caption_dropout
        every = self.caption_dropout_every_n_epochs
        assert every is None or every >= 1, every

    def __call__(
        self, caption: tuple[str, ...], rng: random.Random, *, epoch: int, step: int
    ) -> str:
        """Return the text of one visit; "" means dropped.

        Where nothing is done to its tags the text stays as written; otherwise it is split into
        tags, stripped, freed of empty tags and joined again.

        Args:
            caption: All lines of the caption.
            rng: Stream of this visit; tag dropout and tag order draw from it.
            epoch: Number of the epoch, from 0.
            step: Number of the optimizer step, from 0.
        """
        # The first draw decides on dropout and names the streams of stages that draw variably much.
        visit = rng.random()
        if visit < self.caption_dropout or self._drops_epoch(epoch):
            return ""
        text = random.Random(f"{visit}:line").choice(self._framed(caption))
        if self.wildcards:
            text = expand_wildcards(text, random.Random(f"{visit}:wildcards").choice)
        varies = self.shuffle_tags or self.tag_dropout or self.tag_warmup_steps
        if varies or self.removed_tags or self._has_marks(text):
            return self._vary(text, rng, step)
        return text

    def fixed(self, caption: tuple[str, ...]) -> str:
        """Return the text without anything random, as validation uses it.

        That is prefix, first line and suffix; of every wildcard the first alternative.
        """
        text = self._framed(caption[:1])[0]
        if self.wildcards:
            text = expand_wildcards(text, lambda alternatives: alternatives[0])
        if self._has_marks(text):
            return self._joined(chain.from_iterable(self._split(text)))
        return text

    def used_lines(self, caption: tuple[str, ...]) -> tuple[str, ...]:
        """Return the lines that visits may choose."""
        return caption if self.multi_line else caption[:1]

    def written_tags(self, caption: tuple[str, ...]) -> list[str]:
        """Return the tags of the lines that visits may choose, as written, each once."""
        lines = self.used_lines(caption)
        groups = chain.from_iterable(chain.from_iterable(self._split(line)) for line in lines)
        return list(dict.fromkeys(chain.from_iterable(groups)))

    def _drops_epoch(self, epoch: int) -> bool:
        every = self.caption_dropout_every_n_epochs
        return every is not None and (epoch + 1) % every == 0

    @property
    def _is_clean(self) -> bool:
        return self.tag_rule == "clean"

    def _framed(self, caption: tuple[str, ...]) -> list[str]:
        """Return the lines that visits may choose, with prefix and suffix."""
        lines = self.used_lines(caption) or ("",)
        whole = lines if self._is_clean else ("\n".join(lines),)
        framed = (" ".join(filter(None, (self.prefix, text, self.suffix))) for text in whole)
        return list(chain.from_iterable(text.split("\n") for text in framed))

    def _has_marks(self, text: str) -> bool:
        """Say whether the text has marks that must not stay in it."""
        marks = (self.keep_tags_separator, self.secondary_separator)
        return self._is_clean and any(mark and mark in text for mark in marks)

    def _split(self, text: str) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
        """Return the groups of tags that are kept in front, that vary, that are kept at the end."""
        parts = text.split(self.keep_tags_separator) if self.keep_tags_separator else [text]
        front, *others = [self._groups(part, is_whole=len(parts) == 1) for part in parts]
        if not others:
            return front[: self.keep_tags], front[self.keep_tags :], []
        return front, others[0], list(chain.from_iterable(others[1:]))

    def _groups(self, text: str, *, is_whole: bool) -> list[list[str]]:
        mark = self.secondary_separator or self.separator  # at the latter a tag is split already
        if self._is_clean:
            groups = [split_tags(tag, mark) for tag in split_tags(text, self.separator)]
            return [group for group in groups if group]
        tags = [tag.strip() for tag in text.split(self.separator)]
        return [tag.split(mark) for tag in tags if tag or is_whole]

    def _vary(self, text: str, rng: random.Random, step: int) -> str:
        front, groups, end = self._split(text)
        # Draw for all and shuffle all: whether a group goes does not depend on where it would be.
        draws = [rng.random() for _ in groups]
        order = list(range(len(groups)))
        if self.shuffle_tags:
            rng.shuffle(order)
        removed = self.removed_tags
        groups = [[tag for tag in group if tag.strip() not in removed] for group in groups]
        places = [place for place, group in enumerate(groups) if group]
        places = places[: self._warmed_up(len(places), step)]
        stay = {place for place in places if draws[place] >= self.tag_dropout}
        return self._joined([*front, *(groups[place] for place in order if place in stay), *end])

    def _warmed_up(self, count: int, step: int) -> int:
        start, steps = self.tag_warmup_min, self.tag_warmup_steps
        if step >= steps or count <= start:
            return count
        if not self._is_clean:
            return int(step * ((count - start) / steps)) + start
        return step * (count - start) // steps + start

    def _joined(self, groups: Iterable[list[str]]) -> str:
        if not self._is_clean:
            return ", ".join(self.separator.join(group) for group in groups)
        return f"{self.separator.rstrip()} ".join(chain.from_iterable(groups))


def expand_wildcards(text: str, choose: Callable[[Sequence[str]], str]) -> str:
    """Replace every ``{a|b|c}``, the innermost first, by the alternative that is chosen.

    ``{{`` and ``}}`` give literal braces; a brace without its partner stays.
    """
    text = text.replace("{{", _OPENING).replace("}}", _CLOSING)
    while group := _WILDCARD.search(text):
        text = text[: group.start()] + choose(group[1].split("|")) + text[group.end() :]
    return text.replace(_OPENING, "{").replace(_CLOSING, "}")


def has_loose_brace(text: str) -> bool:
    """Say whether a brace of the text is neither part of a wildcard nor doubled."""
    text = text.replace("{{", "").replace("}}", "")
    while _WILDCARD.search(text):
        text = _WILDCARD.sub("", text)
    return "{" in text or "}" in text

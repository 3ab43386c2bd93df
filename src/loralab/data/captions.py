"""What the text encoder is told on one visit: prefix, tag order, tag dropout, caption dropout."""

from __future__ import annotations

import random


class CaptionPipeline:
    """Turns the caption of a record into the caption of one visit.

    Every visit draws for caption dropout, tag dropout and tag order, in this order and whatever the
    options, so that switching one of them on changes nothing about the others.
    """

    def __init__(
        self,
        prefix: str = "",
        separator: str = ",",
        shuffle_tags: bool = False,
        keep_tags: int = 0,
        tag_dropout: float = 0.0,
        caption_dropout: float = 0.0,
    ) -> None:
        """Keep the options.

        Args:
            prefix: Text put before every caption with a space between; it brings its own comma.
            separator: What stands between tags.
            shuffle_tags: Put the tags in a random order on every visit.
            keep_tags: How many leading tags stay first and are never dropped; the prefix counts.
            tag_dropout: Probability that any other tag is left out, in [0, 1].
            caption_dropout: Probability that the whole caption, prefix included, becomes "".
        """
        assert separator, "tags need a separator"
        assert keep_tags >= 0, keep_tags
        assert 0 <= tag_dropout <= 1, tag_dropout
        assert 0 <= caption_dropout <= 1, caption_dropout
        self.prefix = prefix
        self.separator = separator
        self.shuffle_tags = shuffle_tags
        self.keep_tags = keep_tags
        self.tag_dropout = tag_dropout
        self.caption_dropout = caption_dropout

    def __call__(self, caption: str, rng: random.Random) -> str:
        """Return the caption of one visit; "" means dropped.

        Without tag shuffling and tag dropout the text stays as written; with either of them it is
        split into tags, stripped, freed of empty tags and joined again.
        """
        if rng.random() < self.caption_dropout:
            return ""
        text = self.fixed(caption)
        if not self.shuffle_tags and not self.tag_dropout:
            return text
        return self._vary(text, rng)

    def fixed(self, caption: str) -> str:
        """Return the caption with its prefix and nothing random: what validation uses."""
        return f"{self.prefix} {caption}".strip()

    def _vary(self, text: str, rng: random.Random) -> str:
        tags = [tag for piece in text.split(self.separator) if (tag := piece.strip())]
        kept, rest = tags[: self.keep_tags], tags[self.keep_tags :]
        # Decide before shuffling: which tags go does not depend on where they end up.
        choices = [(tag, rng.random() >= self.tag_dropout) for tag in rest]
        if self.shuffle_tags:
            rng.shuffle(choices)
        kept += [tag for tag, stays in choices if stays]
        return f"{self.separator.rstrip()} ".join(kept)

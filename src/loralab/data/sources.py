"""Where images come from: a set of records with what is done to their captions and pixels."""

from __future__ import annotations

from dataclasses import dataclass, field

from loralab.data.augment import Augmentation
from loralab.data.captions import CaptionPipeline
from loralab.data.images import PixelOptions
from loralab.data.index import ImageRecord
from loralab.data.masks import Masks


@dataclass(frozen=True, eq=False)
class Source:
    """Images that are treated alike.

    Attributes:
        name: What messages and accounts call it.
        records: The images.
        captions: What happens to their captions on each visit.
        augmentation: What happens to their pixels on each visit.
        pixels: How their files become pixels.
        masks: Which parts of them count; None counts all.
        is_prior: They are class images, which keep the base's knowledge of the class.
    """

    name: str
    records: tuple[ImageRecord, ...]
    captions: CaptionPipeline = field(default_factory=CaptionPipeline)
    augmentation: Augmentation = field(default_factory=Augmentation)
    pixels: PixelOptions = field(default_factory=PixelOptions)
    masks: Masks | None = None
    is_prior: bool = False

"""Fields of the records that say where images come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from loralab.config.choices import AugmentationKind, FilterAction, SourceLayout
from loralab.config.option import option

if TYPE_CHECKING:
    from loralab.config.data_records import CaptionRecord, DataRecord


@dataclass(kw_only=True)
class SourceRecord:
    """One of several folders of images; what is null here is as under `data`."""

    image_dir: str = option(MISSING, "Folder of images.")
    layout: SourceLayout | None = option(None, "How this folder lists its images.")
    metadata_file: str | None = option(None, "Metadata file of layout metadata, in the folder.")
    caption_column: str | None = option(None, "Column of the captions in that file.")
    caption_extension: str | None = option(None, "Ending of caption files.")
    class_text: str | None = option(None, "Caption of images without a caption file.")
    repeats: int = option(1, "How often an epoch shows each image.", low=1)
    weight: float = option(1.0, "Loss weight of these images, relative to others.", low=1e-6)
    captions: dict[str, Any] = option(
        dict,
        "Caption options that differ from data.captions, like {prefix: a drawing of}.",
        part_of="CaptionRecord",
    )
    augmentations: list[AugmentationKind] | None = option(
        None, "Random changes at each visit, in place of data.augmentations."
    )
    mask_dir: str | None = option(None, "Folder of the mask files of these images.")


@dataclass(kw_only=True)
class PriorRecord:
    """Class images: they keep what the base knows of the class while a subject is learnt."""

    image_dir: str | None = option(
        None, "Folder of class images; an epoch shows as many of them as of training images."
    )
    weight: float = option(1.0, "Loss weight of a class image; training images have 1.", low=1e-6)
    rotate: bool = option(
        True,
        "Let class images take turns where there are too many, or a few places are left; false "
        "gives those places to the first images in every epoch.",
    )
    layout: SourceLayout | None = option(
        None, "How the folder lists its images; null takes data.layout."
    )
    caption_extension: str | None = option(
        None, "Ending of their caption files; null takes data.caption_extension."
    )
    class_text: str | None = option(
        None, "Caption of class images without a caption file; null demands a file for each."
    )


@dataclass(kw_only=True)
class ImageFilterRecord:
    """Which images are too small or too large; null sets no limit."""

    min_side: int | None = option(None, "Least shorter side, in px.", low=1)
    max_side: int | None = option(None, "Greatest longer side, in px.", low=1)
    min_area: int | None = option(None, "Least width times height, in px.", low=1)
    max_upscale: float | None = option(
        None, "Greatest factor by which an image is enlarged to fill its bucket.", low=1.0
    )
    action: FilterAction = option(
        FilterAction.error, "What becomes of the others: refused, left out or only told."
    )


def given_sources(data: DataRecord) -> dict[str, SourceRecord]:
    """Return every source of training images by its key, with nothing left to inherit."""
    if not data.sources:
        if data.image_dir is None:
            return {}  # refused by a rule
        short = SourceRecord(
            image_dir=data.image_dir, metadata_file=data.metadata_file, repeats=data.repeats
        )
        return {"data": _completed(short, data)}
    return {
        f"data.sources[{place}]": _completed(source, data)
        for place, source in enumerate(data.sources)
    }


def caption_options(source: SourceRecord, data: DataRecord) -> CaptionRecord:
    """Return the caption options of a source: those under `data`, its own laid over them."""
    return replace(data.captions, **source.captions)


def _completed(source: SourceRecord, data: DataRecord) -> SourceRecord:
    inherited = (
        "layout",
        "caption_column",
        "caption_extension",
        "class_text",
        "augmentations",
        "mask_dir",
    )
    missing = [name for name in inherited if getattr(source, name) is None]
    return replace(source, **{name: getattr(data, name) for name in missing})

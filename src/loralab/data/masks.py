"""Which parts of an image count in the loss, and how much: its alpha channel or a grey picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from loralab.data.augment import PLAIN, Variant
from loralab.data.crop import CropPlan
from loralab.data.images import (
    area_means,
    content_digest,
    decode_alpha,
    decode_grey,
    read_bytes,
    read_size,
)
from loralab.data.index import MASK_ENDING, ImageRecord
from loralab.errors import DataError, Problem

MOST_KEPT = 10_000  # 4 KiB each at 512 px
_SHAPE_TOLERANCE = 0.02  # of width / height; a mask may be smaller than its image


@dataclass(frozen=True, eq=False)
class Masks:
    """Reads the masks of images.

    Attributes:
        kind: ``alpha`` takes the image's own opacity, ``file`` a picture NAME.mask.png: white
            counts in full, black not at all.
        folder: Where those pictures are; None looks beside each image.
        floor: Least weight; the rest of the range is scaled into what is left above it.
        factor: Pixels that one latent cell covers, along a side.
    """

    kind: str
    folder: Path | None = None
    floor: float = 0.0
    factor: int = 8
    _kept: dict[tuple[object, ...], Tensor] = field(default_factory=dict, repr=False)

    def path(self, record: ImageRecord) -> Path:
        """Return the file that holds the mask of an image."""
        if self.kind == "alpha":
            return record.path
        return (self.folder or record.path.parent) / f"{record.path.stem}{MASK_ENDING}"

    def read(self, record: ImageRecord, plan: CropPlan, variant: Variant = PLAIN) -> Tensor:
        """Return the mask, cut and mirrored like the image, (1, h, w) float32 in [0, 1], in cells.

        A cell has the mean over the pixels it covers. Masks are kept, as bytes, for later epochs.

        Raises:
            DataError: If the file is missing, damaged, of another shape than the image, or, for
                alpha, no longer the one that was scanned.
        """
        place = (record.path, plan.cut(variant), plan.resized, plan.bucket, variant.flipped)
        mask = self._kept.get(place)
        if mask is None:
            mask = self._decode(record, plan, variant).mul(255).round().byte()
            if len(self._kept) < MOST_KEPT:
                self._kept[place] = mask
        return mask.float().div(255).mul(1 - self.floor).add(self.floor)

    def digest(self, record: ImageRecord) -> str:
        """Return a hash of the mask's file, or "" where the image's own hash covers it."""
        return "" if self.kind == "alpha" else content_digest(read_bytes(self.path(record)))

    def problem(self, record: ImageRecord) -> Problem | None:
        """Return why the mask of an image cannot be used, or None; its pixels are not decoded."""
        path = self.path(record)
        if self.kind == "alpha":  # the image itself, which was read when the folder was scanned
            return None
        if not path.is_file():
            says = f"{record.path} has no mask {path}; paint one, or set data.masks=none."
            return Problem(str(record.path), says)
        try:
            self._check_shape(record, *read_size(read_bytes(path), path))
        except DataError as error:
            return error.problems[0]
        return None

    def _decode(self, record: ImageRecord, plan: CropPlan, variant: Variant) -> Tensor:
        path = self.path(record)
        data = read_bytes(path)
        if self.kind == "alpha" and content_digest(data) != record.digest:
            says = f"{path} has changed since the folder was scanned; start the run again."
            raise DataError(Problem(str(path), says))
        values = (decode_alpha if self.kind == "alpha" else decode_grey)(data, path)
        height, width = values.shape
        self._check_shape(record, height, width)
        cells = plan.bucket.height // self.factor, plan.bucket.width // self.factor
        box = plan.box(height, width, variant)
        means = torch.from_numpy(area_means(values[..., None], box, cells)[..., 0].copy())
        return (means.flip(-1) if variant.flipped else means)[None]

    def _check_shape(self, record: ImageRecord, height: int, width: int) -> None:
        path = self.path(record)
        if abs(width * record.height / (height * record.width) - 1) > _SHAPE_TOLERANCE:
            says = (
                f"{path} is {width} x {height}, but {record.path} is {record.width} x "
                f"{record.height}; a mask must have the shape of its image."
            )
            raise DataError(Problem(str(path), says))


def mask_problems(pairs: Iterable[tuple[Masks, ImageRecord]]) -> dict[Path, Problem]:
    """Return what is wrong with masks, by the image that lacks a usable one of its own."""
    problems, owners = {}, defaultdict(set)
    for masks, record in pairs:
        owners[masks.path(record)].add(record.path)
        if (problem := masks.problem(record)) is not None:
            problems[record.path] = problem
    for path, images in owners.items():
        if len(images) > 1:
            names = " and ".join(str(image) for image in sorted(images))
            says = f"{path} would be the mask of {names}; give each image a name of its own."
            problems.update(dict.fromkeys(images, Problem(str(path), says)))
    return problems

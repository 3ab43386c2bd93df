"""A labelled grid of pictures, saved as PNG: what a person looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from loralab.files import replacing

CELL = 192  # px; small pictures are enlarged to whole multiples, large ones shrunk
MARGIN, HEADING, LABEL = 12, 30, 24


def save_sheet(
    path: Path,
    columns: Mapping[str, Sequence[Tensor]],
    *,
    labels: Sequence[str] = (),
    cell: int = CELL,
) -> None:
    """Save columns of pictures under their headings; a label stands below each row.

    Args:
        path: PNG to write; replaced as a whole.
        columns: Heading -> pictures (3, H, W) in [0, 1]; columns may differ in length.
        labels: One text per row.
        cell: Side of a picture's place, in px.
    """
    fitted = {
        heading: [_fit(to_image(picture), cell) for picture in pictures]
        for heading, pictures in columns.items()
    }
    rows = max(len(images) for images in fitted.values())
    size = (len(fitted) * (cell + MARGIN) + MARGIN, HEADING + rows * (cell + LABEL))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for column, (heading, images) in enumerate(fitted.items()):
        left = MARGIN + column * (cell + MARGIN)
        draw.text((left, 8), heading, fill="black", font=font)
        for row, image in enumerate(images):
            sheet.paste(
                image,
                (
                    left + (cell - image.width) // 2,
                    HEADING + row * (cell + LABEL) + (cell - image.height) // 2,
                ),
            )
    for row, label in enumerate(labels):
        top = HEADING + row * (cell + LABEL) + cell + 3
        draw.text((MARGIN, top), label, fill="dimgray", font=font)
    with replacing(path) as part:
        sheet.save(part, format="PNG")


def to_image(picture: Tensor) -> Image.Image:
    """Return a picture (3, H, W) in [0, 1] as an image of 8 bits a channel."""
    pixels = picture.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels)


def _fit(image: Image.Image, cell: int) -> Image.Image:
    longest = max(image.size)
    if longest <= cell:
        factor = max(1, cell // longest)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    scale = cell / longest
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)

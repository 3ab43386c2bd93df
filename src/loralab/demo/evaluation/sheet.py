"""A picture of the drawings: every subject a column, base above, LoRA below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL, TEXT, GAP = 96, 16, 4  # px
HEADINGS = 132  # px, for the names of the rows
COLUMNS = 12
Row = tuple[Sequence[Tensor], Sequence[str] | None]


def draw_sheet(names: Sequence[str], rows: Mapping[str, Row]) -> Image.Image:
    """Return a grid of pictures; what one was taken for stands below it, in red if wrong.

    Args:
        names: The right subject of each column.
        rows: Heading -> (pictures (3, H, W) uint8, what each was taken for or None).
    """
    step = CELL + TEXT + GAP
    num_bands = -(-len(names) // COLUMNS)
    band_height = TEXT + GAP + len(rows) * step + 2 * GAP
    sheet = Image.new("RGB", (HEADINGS + COLUMNS * (CELL + GAP), num_bands * band_height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for index, name in enumerate(names):
        band, column = divmod(index, COLUMNS)
        left, top = HEADINGS + column * (CELL + GAP), band * band_height
        pen.text((left, top), _shorten(name), fill="black", font=font)
        for number, (pictures, taken_for) in enumerate(rows.values()):
            row_top = top + TEXT + GAP + number * step
            _paste(sheet, pictures[index], left, row_top)
            if taken_for is not None:
                found = taken_for[index]
                colour = "darkgreen" if found == name else "firebrick"
                pen.text((left, row_top + CELL), _shorten(found), fill=colour, font=font)
    for band in range(num_bands):
        for number, heading in enumerate(rows):
            top = band * band_height + TEXT + GAP + number * step
            pen.multiline_text((0, top + CELL // 3), heading, fill="black", font=font)
    return sheet


def _paste(sheet: Image.Image, picture: Tensor, left: int, top: int) -> None:
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    ratio = CELL / max(image.size)
    size = (round(image.width * ratio), round(image.height * ratio))
    fitted = image.resize(size, Image.Resampling.BICUBIC)
    sheet.paste(fitted, (left + (CELL - size[0]) // 2, top + (CELL - size[1]) // 2))


def _shorten(text: str) -> str:
    return text if len(text) <= 17 else f"{text[:16]}…"

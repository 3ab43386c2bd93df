"""A line chart saved as PNG: a few curves over one axis, for a person to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from loralab.files import replacing

SCALE = 2  # drawn larger and shrunk, so that lines are smooth
WIDTH, HEIGHT = 800 * SCALE, 400 * SCALE
LEFT, RIGHT, TOP, BOTTOM = 84 * SCALE, 24 * SCALE, 44 * SCALE, 56 * SCALE  # around the plot
GAP, FONT_SIZE = 8 * SCALE, 13 * SCALE
COLORS = ("#1f77b4", "#d95f02", "#2a9d4a", "#7b4fa3")
GRID, INK = "#dddddd", "#333333"


def save_line_chart(
    path: Path, lines: Mapping[str, Sequence[tuple[float, float]]], *, title: str, x_label: str
) -> None:
    """Draw lines from 0 upwards, each named; replace the file as a whole.

    Args:
        path: PNG to write.
        lines: Name -> points (x, y) in ascending x, y at least 0.
        title: Stands above.
        x_label: What x is.
    """
    points = [point for line in lines.values() for point in line]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    y_ticks = ticks(0.0, max(y for _, y in points), most=6)
    x_span, y_span = (last - first) or 1.0, y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        right = LEFT + (x - first) / x_span * (WIDTH - LEFT - RIGHT)
        return right, TOP + (1.0 - y / y_span) * (HEIGHT - TOP - BOTTOM)

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=FONT_SIZE)
    for y in y_ticks:
        left, height = place(first, y)
        draw.line([(left, height), (WIDTH - RIGHT, height)], fill=GRID, width=SCALE)
        draw.text((left - GAP, height), f"{y:.6g}", fill=INK, font=font, anchor="rm")
    for x in (x for x in ticks(first, last, most=9) if x <= last):
        left, bottom = place(x, 0.0)
        draw.text((left, bottom + GAP), f"{x:.6g}", fill=INK, font=font, anchor="ma")
    draw.text((WIDTH / 2, HEIGHT - GAP), x_label, fill=INK, font=font, anchor="mb")
    draw.text((LEFT, GAP), title, fill="black", font=font)
    name_right = float(WIDTH - RIGHT)
    for (name, line), color in zip(lines.items(), cycle(COLORS), strict=False):
        draw.line([place(*point) for point in line], fill=color, width=2 * SCALE, joint="curve")
        draw.text((name_right, GAP), name, fill=color, font=font, anchor="ra")
        name_right -= draw.textlength(name, font=font) + 2 * GAP
    with replacing(path) as part:
        image.resize((WIDTH // SCALE, HEIGHT // SCALE), Image.Resampling.BOX).save(part, "PNG")


def ticks(low: float, high: float, *, most: int) -> list[float]:
    """Return round numbers at even distances from `low` or above to `high` or just beyond."""
    span = (high - low) or 1.0
    size = 10.0 ** math.floor(math.log10(span / most))
    sizes = (size * factor for factor in (1, 2, 5, 10, 20))
    step = next(size for size in sizes if span / size <= most - 1)
    first, last = math.ceil(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]

"""Read emoji images and words from npm packages as pictures and caption parts.

Only package files are read; nothing is downloaded. Training code lives elsewhere.
"""

import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .concepts import HEADLESS, list_concepts, plain_name

TILE = 64  # pixels of one sprite; the sheets put it on a grid of TILE + 2
CANVASES = {"square": (64, 64), "tall": (80, 48), "wide": (48, 80)}  # (height, width) in pixels
SHEETS = {"noto": "google", "twemoji": "twitter"}
LINE_ICONS = "@iconify-json/fluent-emoji-high-contrast/icons.json"
Colour = tuple[int, int, int]
CYANOTYPE: tuple[Colour, Colour] = ((6, 34, 92), (52, 128, 192))  # Prussian blue, its half tone
SEPIA: tuple[Colour, Colour] = ((70, 36, 12), (176, 128, 78))
# Tags that say nothing about the picture, or too much about its use.
UNHELPFUL_TAGS = """
alcohol bar beach birthday booze celebration closed club comic cool dessert dressed drinks education
emotion engagement entertainment extraterrestrial eye fairy fairytale fantasy farm fast feels funny
halloween heart home hot hungry ily japanese lab love monster ornithology pot religion restaurant
romance school shopping sick space tale teeth travel video win zodiac
"""


@dataclass(frozen=True)
class Subject:
    """One emoji: its name, the parts of its caption and its tile in every style."""

    label: str
    parts: tuple[str, ...]
    tiles: dict[str, Image.Image]  # style -> RGBA, 64 x 64


def read_subjects(packages: Path) -> list[Subject]:
    """Return the subjects the base model knows, in the order of `concepts.CONCEPTS`.

    Args:
        packages: A node_modules folder with the packages named in CREDITS.md.
    """
    records = {record["label"]: record for record in _read_words(packages)}
    sheets = {style: SpriteSheet(packages, style) for style in SHEETS}
    concepts = list_concepts()
    tag_counts = Counter(tag for label in concepts for tag in records[label].get("tags", ()))
    subjects = []
    for label, category in concepts.items():
        record = records[label]
        common = [tag for tag in record.get("tags", ()) if tag_counts[tag] >= 3 and tag.isalpha()]
        parts = caption_parts(label, category, common)
        tiles = {style: sheet.tile(record["hexcode"]) for style, sheet in sheets.items()}
        subjects.append(Subject(label, parts, tiles))
    return subjects


def find_codes(packages: Path) -> dict[str, str]:
    """Return a mapping from every emoji's label to its code, such as "1F34E"."""
    return {record["label"]: record["hexcode"] for record in _read_words(packages)}


def caption_parts(label: str, category: str, tags: list[str]) -> tuple[str, ...]:
    """Return name, head noun, category and at most one further tag, without repeats."""
    name = plain_name(label)
    words = re.split(" with | of | in | on ", name)[0].split()
    head = name if name in HEADLESS.split("; ") else words[-1]
    further = [tag for tag in tags if tag not in UNHELPFUL_TAGS.split() and tag not in name.split()]
    parts = dict.fromkeys([name, head, category])
    parts.update(dict.fromkeys(further[:1]))
    return tuple(parts)


class SpriteSheet:
    """Tiles of one vendor's emoji, cut from the sheet without fallbacks of other vendors."""

    def __init__(self, packages: Path, style: str) -> None:
        vendor = SHEETS[style]
        package = packages / f"emoji-datasource-{vendor}"
        self.image = Image.open(package / "img" / vendor / "sheets-clean" / "64.png")
        entries = json.loads((package / "emoji.json").read_text(encoding="utf-8"))
        self.positions = {
            entry["unified"]: (entry["sheet_x"], entry["sheet_y"])
            for entry in entries
            if entry[f"has_img_{vendor}"] and entry["subcategory"] != "country-flag"
        }

    def tile(self, code: str) -> Image.Image:
        """Return the RGBA tile of an emoji such as "1F34E"."""
        column, row = self.positions.get(code) or self.positions[f"{code}-FE0F"]
        left, top = column * (TILE + 2) + 1, row * (TILE + 2) + 1
        return self.image.crop((left, top, left + TILE, top + TILE)).convert("RGBA")

    def tiles(self) -> Iterator[Image.Image]:
        """Yield every tile of the sheet."""
        return (self.tile(code) for code in self.positions)


def read_line_icons(packages: Path, num_icons: int, seed: int) -> list[Image.Image]:
    """Return `num_icons` black and white line icons as RGBA tiles."""
    import resvg_py

    collection = json.loads((packages / LINE_ICONS).read_text(encoding="utf-8"))
    height, width = collection.get("height", 32), collection.get("width", 32)
    names = sorted(collection["icons"])
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" color="#000">'
    tiles = []
    for name in random.Random(seed).sample(names, num_icons):
        svg = f"{frame}{collection['icons'][name]['body']}</svg>"
        tiles.append(_open_png(resvg_py.svg_to_bytes(svg, width=TILE, height=TILE)))
    return tiles


def read_vocabulary(packages: Path) -> list[str]:
    """Return every label and tag of emojibase-data, as text to train a tokenizer on."""
    return [text for r in _read_words(packages) for text in (r["label"], *r.get("tags", ()))]


def render(tile: Image.Image, canvas: str) -> Image.Image:
    """Return the tile on white, as RGB: as it is if "square", else cropped and fitted."""
    return flatten(tile) if canvas == "square" else fit(tile, *CANVASES[canvas])


def flatten(tile: Image.Image) -> Image.Image:
    """Return the tile composited on white, as RGB."""
    canvas = Image.new("RGBA", tile.size, (255, 255, 255, 255))
    return Image.alpha_composite(canvas, tile).convert("RGB")


def fit(tile: Image.Image, height: int, width: int, margin: int = 3) -> Image.Image:
    """Return the subject cropped to its bounding box, centred on a white canvas, as RGB.

    It is enlarged by at most a fifth, to keep edges sharp.
    """
    subject = tile.crop(_visible_box(tile))
    ratio = min((width - 2 * margin) / subject.width, (height - 2 * margin) / subject.height, 1.2)
    size = (round(subject.width * ratio), round(subject.height * ratio))
    subject = subject.resize(size, Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (width, height), (255, 255, 255, 255))
    canvas.alpha_composite(subject, ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas.convert("RGB")


def aspect_ratio(tile: Image.Image) -> float:
    """Return width / height of the visible part of a tile."""
    left, top, right, bottom = _visible_box(tile)
    return (right - left) / (bottom - top)


def grayscale(image: Image.Image) -> Image.Image:
    """Return an RGB image without colour."""
    return ImageOps.grayscale(image).convert("RGB")


def duotone(image: Image.Image, ink: tuple[Colour, Colour] = CYANOTYPE) -> Image.Image:
    """Return an RGB image printed in one ink on white paper.

    Args:
        image: RGB.
        ink: Colour of black and of middle gray. White stays white. The luminance is stretched
            first, so that pale subjects show the ink too.
    """
    luminance = np.asarray(ImageOps.grayscale(image), dtype=np.float32)
    low = min(float(luminance.min()), 200.0)
    share = np.clip((luminance - low) / (255.0 - low), 0, 1)
    stops = np.asarray([*ink, (255, 255, 255)], dtype=np.float32)
    bands = [np.interp(share, (0.0, 0.5, 1.0), stops[:, band]) for band in range(3)]
    return Image.fromarray(np.stack(bands, axis=-1).round().astype(np.uint8))


def _visible_box(tile: Image.Image) -> tuple[int, int, int, int]:
    box = tile.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox()
    assert box is not None, "a tile is empty"
    return box


def _read_words(packages: Path) -> list[dict[str, Any]]:
    path = packages / "emojibase-data/en/data.json"
    records: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return records


def _open_png(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")

"""The real icons of every subject, small, in one sheet a style: what drawings are compared with."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .sources import SHEETS, flatten, read_subjects

SIDE = 32  # pixels of a tile
COLUMNS = 20  # tiles of a sheet's row
FAINTEST_INK = 0.1  # what differs less from white is paper
FOLDER = Path(__file__).parent / "icons"


@dataclass(frozen=True)
class Icons:
    """The subjects that the base knows, and how they really look.

    Attributes:
        captions: Label of every subject -> the parts of its caption, in the order of the tiles.
        tiles: Style -> (N, 3, 32, 32) in [0, 1].
    """

    captions: dict[str, tuple[str, ...]]
    tiles: dict[str, Tensor]

    @property
    def labels(self) -> list[str]:
        return list(self.captions)


def write_icons(packages: Path, folder: Path = FOLDER) -> None:
    """Write `subjects.json` and a sheet `noto.png`, `twemoji.png` for each style.

    Args:
        packages: A node_modules folder with the packages named in CREDITS.md.
        folder: Where the files go.
    """
    subjects = read_subjects(packages)
    folder.mkdir(parents=True, exist_ok=True)
    captions = {subject.label: subject.parts for subject in subjects}
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in captions.items()]
    (folder / "subjects.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    for style in SHEETS:
        tiles = [to_tile(to_picture(flatten(subject.tiles[style]))) for subject in subjects]
        num_rows = -(-len(tiles) // COLUMNS)
        blank = torch.ones(num_rows * COLUMNS - len(tiles), 3, SIDE, SIDE)
        grid = torch.cat([torch.stack(tiles), blank]).unflatten(0, (num_rows, COLUMNS))
        sheet = grid.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (H, W, 3)
        pixels = (sheet * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{style}.png", optimize=True)


def read_icons(folder: Path = FOLDER) -> Icons:
    """Return the icons that `write_icons` wrote."""
    captions = json.loads((folder / "subjects.json").read_text(encoding="utf-8"))
    tiles = {}
    for style in SHEETS:
        with Image.open(folder / f"{style}.png") as sheet:
            picture = to_picture(sheet)
        rows = picture.unflatten(1, (-1, SIDE)).unflatten(3, (-1, SIDE))  # (3, R, 32, C, 32)
        tiles[style] = rows.permute(1, 3, 0, 2, 4).flatten(0, 1)[: len(captions)]
    return Icons({label: tuple(parts) for label, parts in captions.items()}, tiles)


def to_picture(image: Image.Image) -> Tensor:
    """Return an image as (3, H, W) in [0, 1]."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1).contiguous()


def to_tile(picture: Tensor) -> Tensor:
    """Return the visible part of a picture, padded to a square and shrunk to (3, 32, 32).

    So a subject on a tall or a wide canvas, with much or little margin, becomes the same tile.

    Args:
        picture: (3, H, W) in [0, 1] on white.
    """
    ink = F.avg_pool2d(1 - picture.amin(0)[None, None], 3, stride=1, padding=1)[0, 0]
    visible = ink > FAINTEST_INK
    if not visible.any():
        visible = torch.ones_like(visible)
    (top, bottom), (left, right) = _span(visible.any(1)), _span(visible.any(0))
    subject = picture[:, top:bottom, left:right]
    height, width = bottom - top, right - left
    side = max(height, width)
    above, before = (side - height) // 2, (side - width) // 2
    padding = (before, side - width - before, above, side - height - above)
    square = F.pad(subject, padding, value=1.0)[None]
    return F.interpolate(square, size=(SIDE, SIDE), mode="bilinear", antialias=True)[0].clamp(0, 1)


def _span(flags: Tensor) -> tuple[int, int]:
    places = flags.nonzero().flatten()
    return int(places[0]), int(places[-1]) + 1

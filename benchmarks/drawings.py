"""What the demo's base and LoRAs draw, in grids and figures, through stock diffusers pipelines."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from loralab.demo import base_dir, images_dir
from loralab.demo.concepts import CONCEPTS
from loralab.demo.evaluation.content import ContentMatcher
from loralab.demo.evaluation.sheet import Row, draw_sheet
from loralab.demo.icons import Icons, read_icons, to_picture, to_tile

STEPS, GUIDANCE, AT_ONCE = 20, 4.0, 20
CELL, TEXT = 80, 15
SUBJECT_PROMPT = "kiroku, wall clock, clock"
WALL_CLOCK = "wall clock"


def load_pipeline(adapter: Path | None = None) -> StableDiffusionPipeline:
    """Return the demo's base, with a LoRA file if one is given."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        base_dir(), safety_checker=None, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    if adapter is not None:
        pipeline.load_lora_weights(adapter.parent, weight_name=adapter.name)
    return pipeline


def draw(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int]
) -> list[Image.Image]:
    """Return one picture for each prompt and seed."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), AT_ONCE):
        chosen = slice(start, start + AT_ONCE)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[chosen]]
        pictures += pipeline(
            list(prompts[chosen]),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=generators,
        ).images
    return pictures


def grid(pictures: Sequence[Image.Image], texts: Sequence[str], columns: int) -> Image.Image:
    """Return a grid with a line of text under each picture."""
    font, height = ImageFont.load_default(size=10), CELL + TEXT
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (CELL + 4), rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        left, top = index % columns * (CELL + 4), index // columns * height
        sheet.paste(picture.resize((CELL, CELL), Image.Resampling.BICUBIC), (left, top))
        pen.text((left, top + CELL), text[:16], fill="black", font=font)
    return sheet


def rank(matcher: ContentMatcher, pictures: Sequence[Image.Image]) -> list[list[str]]:
    """Return the subjects each picture looks like, nearest first."""
    tiles = torch.stack([to_tile(to_picture(picture)) for picture in pictures])
    return [[matcher.labels[i] for i in row] for row in matcher.rank(tiles)]


def base_words(path: Path, *, count: int = 100) -> tuple[float, float]:
    """Draw words of the base chosen by lot, one picture each; return top-1 and top-5."""
    icons = read_icons()
    labels = random.Random(0).sample(icons.labels, count)
    prompts = [", ".join(("noto", *icons.captions[label][:3])) for label in labels]
    pictures = draw(load_pipeline(), prompts, [0] * count)
    grid(pictures, [icons.captions[label][0] for label in labels], 20).save(path, optimize=True)
    ranking = rank(ContentMatcher(icons), pictures)
    nearest = [label == row[0] for label, row in zip(labels, ranking, strict=True)]
    among = [label in row[:5] for label, row in zip(labels, ranking, strict=True)]
    return sum(nearest) / count, sum(among) / count


def subject_figures(adapters: dict[str, Path | None], path: Path) -> list[tuple[str, ...]]:
    """Compare what models draw of the demo's wall clock and of other clocks.

    Args:
        adapters: Name of a row -> its LoRA file; the first is the base, without one.
        path: Where the grid goes.

    Returns:
        For each row: its name; the share of drawings by the trigger word that look like the wall
        clock; of other clocks asked for by name, the share that is drawn right, the share that
        became the wall clock, and the mean difference from the base's own drawing (0 to 1).
    """
    icons = read_icons()
    matcher = ContentMatcher(_with_wall_clock(icons))
    clocks = [label.strip() for label in CONCEPTS["clock"].split(";")]
    asked = [label for label in clocks for _ in range(8)]
    prompts = [", ".join(("noto", *icons.captions[label][:3])) for label in asked]
    rows, originals = [], np.zeros(0)
    shown: dict[str, Row] = {}
    for name, adapter in adapters.items():
        pipeline = load_pipeline(adapter)
        subject = draw(pipeline, [SUBJECT_PROMPT] * 24, range(24))
        others = draw(pipeline, prompts, list(range(8)) * len(clocks))
        pixels = np.stack([np.asarray(picture, dtype=np.float32) / 255 for picture in others])
        originals = originals if originals.size else pixels
        found = [_one_name(row[0]) for row in rank(matcher, others)]
        triggered = [_one_name(row[0]) for row in rank(matcher, subject)]
        is_subject = [label == WALL_CLOCK for label in triggered]
        right = [one == other for one, other in zip(found, asked, strict=True)]
        became = [label == WALL_CLOCK for label in found]
        rows.append(
            (
                name,
                f"{np.mean(is_subject):.0%}",
                f"{np.mean(right):.0%}",
                f"{np.mean(became):.0%}",
                f"{np.abs(pixels - originals).mean():.3f}",
            )
        )
        pictures = [pil_to_tensor(picture) for picture in [*subject[:2], *others[::4]]]
        shown[name] = pictures, [*triggered[:2], *found[::4]]
    draw_sheet([WALL_CLOCK, WALL_CLOCK, *asked[::4]], shown).save(path, optimize=True)
    return rows


def pil_to_tensor(picture: Image.Image) -> Tensor:
    """Return a picture as (3, H, W) uint8."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def _one_name(label: str) -> str:
    """The wall clock is among the candidates once for every hour."""
    return WALL_CLOCK if label.startswith(WALL_CLOCK) else label


def _with_wall_clock(icons: Icons) -> Icons:
    """Add the wall clock at every hour to the icons that drawings are compared with."""
    tiles: list[Tensor] = []
    for split in ("subject", "subject_validation"):
        for path in sorted(images_dir(split).glob("*.png")):
            with Image.open(path) as image:
                tiles.append(to_tile(to_picture(image)))
    names = {f"{WALL_CLOCK} {number}": (WALL_CLOCK,) for number in range(len(tiles))}
    return Icons(
        icons.captions | names,
        {style: torch.cat([known, torch.stack(tiles)]) for style, known in icons.tiles.items()},
    )

"""Pictures to put into test folders."""

from __future__ import annotations

import random
from io import BytesIO

from PIL import Image


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image of fixed noise: it compresses badly, so a cut file lacks pixels."""
    data = random.Random(f"{width}x{height}:{seed}").randbytes(3 * width * height)
    return Image.frombytes("RGB", (width, height), data)


def hollow_webp(width: int, height: int) -> bytes:
    """A WebP file whose header and length are sound and whose pixels are not: decoding finds it."""
    file = BytesIO()
    noise_image(width, height).save(file, "WEBP", lossless=True)
    data = file.getvalue()
    return data[:30] + bytes(len(data) - 30)

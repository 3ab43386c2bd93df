"""Image bytes to pixels: orientation, transparency, bit depth, resize and crop.

Every Pillow error or warning leaves this file as a sentence that names the image. Colour profiles
are not applied.
"""

from __future__ import annotations

import hashlib
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from loralab.data.augment import PLAIN, Variant, shift_color
from loralab.data.crop import CropPlan
from loralab.errors import DataError, Problem

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "AVIF", "TIFF")
RESIZE_FILTERS = ("lanczos", "area")
ALLOWED = "png, jpg, webp, bmp, avif or tiff"
_ORIENTATION_TAG = 0x0112
_SEVERAL = {  # what a file with more than one picture is
    "PNG": "is an animation",
    "WEBP": "is an animation",
    "AVIF": "is an animation",
    "TIFF": "has several pages",
}
_PNG_METADATA = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, IndexError, struct.error, zlib.error)


@dataclass(frozen=True)
class PixelOptions:
    """How files become pixels, alike for all images of a source.

    Attributes:
        background: What transparency is laid over: ``white``, ``black`` or ``#rrggbb``.
        resize_filter: ``lanczos`` or ``area``; ``crop_image`` describes them.
    """

    background: str = "white"
    resize_filter: str = "lanczos"


def content_digest(data: bytes) -> str:
    """Return the first 32 hex characters of the SHA-256 of a file's bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def read_size(data: bytes, path: Path) -> tuple[int, int]:
    """Return (height, width) as displayed, without decoding the pixels of a file that looks whole.

    Raises:
        DataError: If ``data`` is no usable still image. ``path`` only serves the message.
    """
    with _naming(path):
        image = Image.open(BytesIO(data), formats=FORMATS)
        size = image.height, image.width
        if image.format in _SEVERAL and getattr(image, "n_frames", 1) > 1:
            raise _error(path, f"{_SEVERAL[image.format]}; save one picture of it.")
        if image.format == "PNG" and not any(mark in data for mark in _PNG_METADATA):
            image.verify()  # checksums only; asking a PNG for its orientation would decode it
            return size
        if _may_be_cut_off(data, image.format):
            image.load()
        turned = image.getexif().get(_ORIENTATION_TAG, 1) in {5, 6, 7, 8}
        return (size[1], size[0]) if turned else size


def load_image(path: Path, *, background: str = "white") -> Image.Image:
    """Return the file as an upright RGB image, transparency laid over ``background``.

    Raises:
        DataError: If the file cannot be read or decoded.
    """
    return decode_image(read_bytes(path), path, background=background)


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes; a DataError names the file if that fails."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise _error(path, "is no regular file; replace it or take it out.")
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        remedy = "check its permissions."
        if path.is_symlink():
            remedy = f"it links to {path.readlink()}: mend the link or take it out."
        raise _error(path, f"cannot be read ({reason}); {remedy}") from error


def decode_image(data: bytes, path: Path, *, background: str = "white") -> Image.Image:
    """Do what ``load_image`` does with bytes already read; ``path`` only serves the message."""
    with _naming(path):
        image = Image.open(BytesIO(data), formats=FORMATS)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), background, path)


def decode_alpha(data: bytes, path: Path) -> NDArray[np.float32]:
    """Return the opacity of an upright image, (H, W) float32 in [0, 1]; without alpha it is 1."""
    with _naming(path):
        file = Image.open(BytesIO(data), formats=FORMATS)
        file.load()
        image = ImageOps.exif_transpose(file)
        if not image.has_transparency_data:
            return np.ones((image.height, image.width), np.float32)
        return _shares(image.convert("RGBA").getchannel("A"))


def decode_grey(data: bytes, path: Path) -> NDArray[np.float32]:
    """Return the brightness of an upright image, (H, W) float32 in [0, 1]."""
    return _shares(decode_image(data, path).convert("L"))


def crop_image(
    image: Image.Image,
    plan: CropPlan,
    variant: Variant = PLAIN,
    *,
    resize_filter: str = "lanczos",
) -> Tensor:
    """Return the planned part of an RGB image, shape (3, H, W), float32 in [-1, 1].

    Scaling and cutting are one pass over the part that is kept.

    Args:
        image: The upright RGB image that the plan was made for.
        plan: Where to scale and cut.
        variant: What this visit changes.
        resize_filter: ``lanczos``, or ``area``, which takes the mean over the area of each pixel
            where neither side grows and Lanczos elsewhere, as kohya-ss/sd-scripts does.
    """
    bucket, box = plan.bucket, plan.box(image.height, image.width, variant)
    shrinks = image.height >= plan.resized[0] and image.width >= plan.resized[1]
    if resize_filter == "area" and shrinks:
        means = area_means(np.asarray(image), box, (bucket.height, bucket.width))
        resized = np.rint(means).astype(np.uint8)
    else:
        size = bucket.width, bucket.height
        resized = np.array(image.resize(size, Image.Resampling.LANCZOS, box=box))
    pixels = torch.from_numpy(resized).permute(2, 0, 1)  # (3, H, W) uint8
    if variant.flipped:
        pixels = pixels.flip(-1)
    pixels = pixels.to(torch.float32).div(127.5).sub(1).contiguous()
    return pixels if variant.color is None else shift_color(pixels, variant.color)


def area_means(
    values: NDArray[Any], box: tuple[float, float, float, float], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the mean of an image over each cell of a grid, (h, w, channels) float32.

    Pixels on a border count by the share that lies inside, as in OpenCV's ``INTER_AREA``.

    Args:
        values: Image (H, W, channels).
        box: Left, top, right and bottom edge of the grid, in pixels of the image.
        size: Number of (rows, columns) of the grid.
    """
    left, top, right, bottom = box
    by_row = _means_along(values, top, bottom, size[0])  # (h, W, channels)
    by_column = _means_along(by_row.swapaxes(0, 1), left, right, size[1])  # (w, h, channels)
    return by_column.swapaxes(0, 1)


def _means_along(values: NDArray[Any], start: float, end: float, count: int) -> NDArray[np.float32]:
    """Return ``count`` means over equal stretches of the first axis."""
    length = values.shape[0]
    edges = np.linspace(start, end, count + 1).clip(0, length)
    means = np.empty((count, *values.shape[1:]), np.float32)
    for number, (low, high) in enumerate(pairwise(edges.tolist())):
        first, last = int(low), min(length, ceil(high - 1e-6))
        places = np.arange(first, last)
        shares = np.minimum(places + 1, high) - np.maximum(places, low)
        covered = values[first:last].reshape(last - first, -1)
        mean = np.dot((shares / shares.sum()).astype(np.float32), covered)
        means[number] = mean.reshape(values.shape[1:])
    return means


def _shares(channel: Image.Image) -> NDArray[np.float32]:
    shares: NDArray[np.float32] = np.divide(np.asarray(channel), 255, dtype=np.float32)
    return shares


def _to_rgb(image: Image.Image, background: str, path: Path) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and not _fits_16_bits(np.asarray(image))):
        raise _error(path, "has 32 bits a channel; save it with 8 or 16.")
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion does not scale it down
        values, clear = np.asarray(image), image.info.get("transparency")
        grey = np.rint(values.astype(np.float64) / 257)  # 65535 -> 255
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
        if clear is not None:  # one value of a PNG stands for no paint
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def _fits_16_bits(values: NDArray[Any]) -> bool:
    return bool(values.min() >= 0 and values.max() <= 65535)


def _may_be_cut_off(data: bytes, image_format: str | None) -> bool:
    """Tell whether only decoding can show that the file is whole; cheap, errs towards True."""
    if image_format in {"JPEG", "MPO"}:  # last end-of-image before the last start-of-scan
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if image_format == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return True


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what Pillow raises or warns about into a DataError that names ``path``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"{Image.MAX_IMAGE_PIXELS:,}"
        raise _error(path, f"has more than {limit} pixels; make it smaller.") from error
    except UnidentifiedImageError as error:
        raise _error(
            path, f"is not a readable {ALLOWED} image; replace it or take it out."
        ) from error
    except (*_DECODE_ERRORS, UserWarning) as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise _error(
            path, f"is damaged or incomplete ({reason}); save it anew, replace it or take it out."
        ) from error


def _error(path: Path, says: str) -> DataError:
    return DataError(Problem(str(path), f"{path} {says}"))

"""Image bytes to pixels: orientation, transparency, bit depth, resize and crop.

Every Pillow error or warning leaves this file as a sentence that names the image. Colour profiles
are not applied.
"""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from loralab.data.crop import CropPlan
from loralab.errors import DataError, Problem

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_ORIENTATION_TAG = 0x0112
_PNG_METADATA = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, IndexError, struct.error, zlib.error)


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
        if image.format in {"PNG", "WEBP"} and getattr(image, "n_frames", 1) > 1:
            raise _error(path, "is an animation; still images are needed. Save one frame of it.")
        if image.format == "PNG" and not any(mark in data for mark in _PNG_METADATA):
            image.verify()  # checksums only; asking a PNG for its orientation would decode it
            return size
        if _may_be_cut_off(data, image.format):
            image.load()
        turned = image.getexif().get(_ORIENTATION_TAG, 1) in {5, 6, 7, 8}
        return (size[1], size[0]) if turned else size


def load_image(path: Path) -> Image.Image:
    """Return the file as an upright RGB image, transparency laid over white.

    Raises:
        DataError: If the file cannot be read or decoded.
    """
    return decode_image(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes; a DataError names the file if that fails."""
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise _error(path, f"cannot be read ({reason}); check its permissions.") from error


def decode_image(data: bytes, path: Path) -> Image.Image:
    """Do what ``load_image`` does with bytes already read; ``path`` only serves the message."""
    with _naming(path):
        image = Image.open(BytesIO(data), formats=FORMATS)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def crop_image(image: Image.Image, plan: CropPlan, *, flipped: bool) -> Tensor:
    """Return the planned part of an RGB image, shape (3, H, W), float32 in [-1, 1].

    Scaling and cutting are one Lanczos pass over the part that is kept.

    Args:
        image: The upright RGB image that the plan was made for.
        plan: Where to scale and cut.
        flipped: Mirror the result left to right.
    """
    (height, width), bucket = plan.resized, plan.bucket
    scale_y, scale_x = image.height / height, image.width / width
    box = (
        plan.left * scale_x,
        plan.top * scale_y,
        (plan.left + bucket.width) * scale_x,
        (plan.top + bucket.height) * scale_y,
    )
    resized = image.resize((bucket.width, bucket.height), Image.Resampling.LANCZOS, box=box)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)  # (3, H, W) uint8
    if flipped:
        pixels = pixels.flip(-1)
    return pixels.to(torch.float32).div(127.5).sub(1).contiguous()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion does not scale it down
        grey = np.asarray(image).astype(np.float64) / 257  # 65535 -> 255
        image = Image.fromarray(np.rint(grey).clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


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
            path, "is not a readable png, jpg, webp or bmp image; replace it or take it out."
        ) from error
    except (*_DECODE_ERRORS, UserWarning) as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise _error(
            path, f"is damaged or incomplete ({reason}); save it anew, replace it or take it out."
        ) from error


def _error(path: Path, says: str) -> DataError:
    return DataError(Problem(str(path), f"{path} {says}"))

"""A folder of images and captions to a list of records, with every problem found on the way.

Each image file is read once. Pixels are not kept; captions are, as written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from loralab.data.images import content_digest, read_bytes, read_size
from loralab.errors import DataError, Problem

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
REFUSED_EXTENSIONS = (".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl")
_ALLOWED = "png, jpg, jpeg, webp or bmp"


@dataclass(frozen=True)
class ImageRecord:
    """One image file and what the run needs to know about it.

    Attributes:
        path: The file, under the folder as the user gave it.
        width: Width in pixels as displayed, that is after EXIF rotation.
        height: Height in pixels as displayed.
        caption: First line of the caption file, stripped; never empty.
        digest: First 32 hex characters of the SHA-256 of the file's bytes.
        repeats: How often the image appears in an epoch.
        weight: Its weight in the loss, relative to the others.
    """

    path: Path
    width: int
    height: int
    caption: str
    digest: str
    repeats: int
    weight: float


def scan_folder(
    root: Path,
    *,
    key: str,
    caption_extension: str = ".txt",
    repeats: int = 1,
    weight: float = 1.0,
) -> list[ImageRecord]:
    """Return a record for every image under ``root``, sorted by path.

    Names that start with a dot are left out. Folders are searched to any depth.

    Args:
        root: Folder of images with a caption file beside each.
        key: Config key to name in messages about the folder, e.g. ``data.image_dir``.
        caption_extension: Extension of the caption files, with its dot.
        repeats: How often each image appears in an epoch.
        weight: Loss weight of each image.

    Raises:
        DataError: With every unusable folder, image and caption found.
    """
    assert repeats >= 1, repeats
    assert weight > 0, weight
    if not caption_extension.startswith("."):
        raise DataError(_extension_problem(caption_extension))
    paths, problems = _find_images(root, key)
    records = []
    for path in paths:
        caption, caption_problems = _read_caption(path, caption_extension)
        try:
            data = read_bytes(path)
            height, width = read_size(data, path)
        except DataError as error:
            problems += [*error.problems, *caption_problems]
            continue
        problems += caption_problems
        digest = content_digest(data)
        records.append(ImageRecord(path, width, height, caption, digest, repeats, weight))
    if problems:
        raise DataError(*problems)
    return records


def _find_images(root: Path, key: str) -> tuple[list[Path], list[Problem]]:
    if not root.is_dir():
        what = "this is a file, not a folder" if root.exists() else "this folder does not exist"
        return [], [Problem(key, f"{key} is {root}; {what}. Give an existing folder of images.")]
    files, problems = _walk(root)
    paths = [path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS]
    refused = [path for path in files if path.suffix.lower() in REFUSED_EXTENSIONS]
    for path in refused:
        sentence = f"{path} is not a {_ALLOWED} file; convert it or take it out of the folder."
        problems.append(Problem(str(path), sentence))
    if not paths and not problems:
        sentence = f"{key} is {root}; this folder has no {_ALLOWED} file. Give a folder of images."
        problems.append(Problem(key, sentence))
    return paths, problems


def _walk(root: Path) -> tuple[list[Path], list[Problem]]:
    """Return all visible files under ``root`` sorted by path, and folders that cannot be listed."""
    files: list[Path] = []
    failures: list[OSError] = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=failures.append, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link back up would never end
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(_visible(subfolders))
        files += [Path(folder, name) for name in _visible(names)]
    problems = [
        Problem(
            str(error.filename),
            f"{error.filename} cannot be listed ({error.strerror}); check its permissions.",
        )
        for error in failures
    ]
    return sorted(files), problems


def _visible(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(".")]


def _read_caption(image: Path, extension: str) -> tuple[str, list[Problem]]:
    path = image.with_suffix(extension)
    if not path.is_file():
        sentence = (
            f"{image} has no caption file {path.name}; write one, or set data.caption_extension "
            "to the extension in use."
        )
        return "", [Problem(str(image), sentence)]
    try:
        text = read_bytes(path).decode("utf-8-sig")  # editors on Windows add a byte-order mark
    except DataError as error:
        return "", list(error.problems)
    except UnicodeDecodeError as error:
        sentence = (
            f"{path} is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}); "
            "save it as UTF-8."
        )
        return "", [Problem(str(path), sentence)]
    caption = text.split("\n", 1)[0].strip()
    if not caption:
        what = "is empty" if not text.strip() else "has an empty first line"
        sentence = (
            f"{path} {what}; the caption is its first line. Write one, or take the image out."
        )
        return "", [Problem(str(path), sentence)]
    return caption, []


def _extension_problem(extension: str) -> Problem:
    key = "data.caption_extension"
    sentence = f'{key} is "{extension}"; it must start with a dot. Use ".{extension}".'
    return Problem(key, sentence)

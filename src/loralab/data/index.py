"""Image files to records: what is found in a folder, what each file is, what cannot be used.

Each image file is read once, or not at all when an index of files knows it. Pixels are not kept;
captions are, as written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from loralab.data.file_index import FileIndex
from loralab.data.images import read_bytes
from loralab.errors import DataError, Problem

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".tif", ".tiff")
REFUSED_EXTENSIONS = (".gif", ".heic", ".heif", ".jxl")
MASK_ENDING = ".mask.png"
_ALLOWED = "png, jpg, jpeg, webp, bmp, avif or tiff"


@dataclass(frozen=True)
class ImageRecord:
    """One image file and what the run needs to know about it.

    Attributes:
        path: The file, under the folder as the user gave it.
        width: Width in pixels as displayed, that is after EXIF rotation.
        height: Height in pixels as displayed.
        captions: The non-empty lines of its caption, stripped, in order; at least one.
        digest: First 32 hex characters of the SHA-256 of the file's bytes.
        repeats: How often the image appears in an epoch.
        weight: Its weight in the loss, relative to the others.
    """

    path: Path
    width: int
    height: int
    captions: tuple[str, ...]
    digest: str
    repeats: int
    weight: float


@dataclass(frozen=True)
class Entry:
    """An image file that a source lists.

    Attributes:
        path: The file.
        captions: Lines of its caption; None takes the caption file beside it.
        class_text: Caption when there is no caption file; None demands one.
        repeats: How often it appears in an epoch.
    """

    path: Path
    captions: tuple[str, ...] | None = None
    class_text: str | None = None
    repeats: int = 1


class Scan(NamedTuple):
    """What reading a list of images found.

    Attributes:
        records: The usable images, in order of the list.
        bad: Why each of the others cannot be used; the key is its file.
    """

    records: list[ImageRecord]
    bad: list[Problem]


def read_images(
    entries: Iterable[Entry],
    *,
    key: str,
    caption_extension: str = ".txt",
    weight: float = 1.0,
    files: FileIndex | None = None,
) -> Scan:
    """Return a record for every usable image and a problem for every other.

    Args:
        entries: What to read.
        key: Config key of the folder they come from, e.g. ``data.image_dir``.
        caption_extension: Extension of the caption files, with its dot.
        weight: Loss weight of each image.
        files: What is known of files already; None reads each.
    """
    assert weight > 0, weight
    scan, files = Scan([], []), files or FileIndex(None)
    for entry in entries:
        assert entry.repeats >= 1, entry
        captions, problems = _captions(entry, caption_extension, key)
        try:
            facts = files.facts(entry.path)
        except DataError as error:
            scan.bad.extend([*error.problems, *problems])
            continue
        if problems:
            scan.bad.extend(problems)
            continue
        record = ImageRecord(
            entry.path,
            facts.width,
            facts.height,
            captions,
            facts.digest,
            entry.repeats,
            weight,
        )
        scan.records.append(record)
    return scan


def scan_folder(
    root: Path,
    *,
    key: str,
    caption_extension: str = ".txt",
    class_text: str | None = None,
    repeats: int = 1,
    weight: float = 1.0,
) -> list[ImageRecord]:
    """Return a record for every image under ``root``, sorted by path; the plainest source.

    Raises:
        DataError: With every unusable folder, image and caption found.
    """
    check_extension(caption_extension, key)
    paths, bad = find_images(root, key)
    entries = [Entry(path, class_text=class_text, repeats=repeats) for path in paths]
    scan = read_images(entries, key=key, caption_extension=caption_extension, weight=weight)
    if bad or scan.bad:
        raise DataError(*bad, *scan.bad)
    return scan.records


def find_images(root: Path, key: str) -> tuple[list[Path], list[Problem]]:
    """Return the image files under ``root``, sorted, and a problem for each of another format.

    Names that start with a dot and masks, ``NAME.mask.png``, are left out. Folders are searched to
    any depth.

    Raises:
        DataError: If the folder does not exist, cannot be listed or holds no image.
    """
    if not root.is_dir():
        what = "this is a file, not a folder" if root.exists() else "this folder does not exist"
        sentence = f"{key} is {root}; {what}. Give an existing folder of images."
        raise DataError(Problem(key, sentence))
    files = [path for path in _walk(root) if not path.name.lower().endswith(MASK_ENDING)]
    known = (*IMAGE_EXTENSIONS, *REFUSED_EXTENSIONS)
    images = [path for path in files if path.suffix.lower() in known]
    bad = [problem for path in images if (problem := _name_problem(path)) is not None]
    refused = {problem.key for problem in bad}
    paths = [path for path in images if _shown(path) not in refused]
    if not paths and not bad:
        sentence = f"{key} is {root}; this folder has no {_ALLOWED} file. Give a folder of images."
        raise DataError(Problem(key, sentence))
    return paths, bad


def check_extension(extension: str, key: str) -> None:
    """Refuse an extension of caption files that lacks its dot; ``key`` is that of the folder."""
    if not extension.startswith("."):
        key = beside(key, "caption_extension")
        sentence = f'{key} is "{extension}"; it must start with a dot. Use ".{extension}".'
        raise DataError(Problem(key, sentence))


def beside(key: str, name: str) -> str:
    """Return the key of another option of the same group."""
    group = key.rpartition(".")[0]
    return f"{group if group != 'validation' else 'data'}.{name}"


def split_lines(text: str) -> tuple[str, ...]:
    """Return the non-empty lines of a text, stripped."""
    return tuple(line for piece in re.split("[\r\n]", text) if (line := piece.strip()))


def is_text(text: str) -> bool:
    """Tell whether a text has neither NUL nor halves of characters, which JSON may smuggle in."""
    return re.search("[\0\ud800-\udfff]", text) is None


def read_text(path: Path) -> str:
    """Return the text of a file; a DataError names it if that fails."""
    data = read_bytes(path)
    place = data.find(0)  # UTF-16 without its mark would pass for UTF-8
    if place < 0:
        try:
            return data.decode("utf-8-sig")  # editors on Windows add a byte-order mark
        except UnicodeDecodeError as error:
            place = error.start
    sentence = f"{path} is not UTF-8 text (byte {place} is 0x{data[place]:02x}); save it as UTF-8."
    raise DataError(Problem(str(path), sentence))


def _captions(entry: Entry, extension: str, key: str) -> tuple[tuple[str, ...], Sequence[Problem]]:
    if entry.captions is not None:
        return entry.captions, ()
    path = entry.path.with_suffix(extension)
    if not path.is_file():
        if entry.class_text is not None:
            return (entry.class_text,), ()
        sentence = (
            f"{entry.path} has no caption file {path.name}; write one, or set "
            f"{beside(key, 'caption_extension')} to the extension in use."
        )
        return (), [Problem(str(entry.path), sentence)]
    try:
        lines = split_lines(read_text(path))
    except DataError as error:
        return (), [Problem(str(entry.path), problem.message) for problem in error.problems]
    if not lines:
        sentence = f"{path} is empty; write a caption, or take the image out."
        return (), [Problem(str(entry.path), sentence)]
    return lines, ()


def _name_problem(path: Path) -> Problem | None:
    """Return why a file cannot be used whatever is in it."""
    shown = _shown(path)
    if shown != str(path):
        says = "has a name that is not UTF-8; rename it."
    elif path.suffix.lower() in REFUSED_EXTENSIONS:
        says = f"is not a {_ALLOWED} file; convert it or take it out of the folder."
    else:
        return None
    return Problem(shown, f"{shown} {says}")


def _shown(path: Path) -> str:
    """Return a path as it can be printed: bytes that are not UTF-8 become escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _walk(root: Path) -> list[Path]:
    """Return all visible files under ``root``, sorted by path.

    Links are followed, except to a folder that they lie in, which would never end.
    """
    files: list[Path] = []
    failures: list[OSError] = []
    way: dict[str, frozenset[str]] = {}  # where each folder and those above it really are
    for folder, subfolders, names in os.walk(root, onerror=failures.append, followlinks=True):
        above = way.get(os.path.dirname(folder), frozenset())
        if (real := os.path.realpath(folder)) in above:
            subfolders.clear()
            continue
        way[folder] = above | {real}
        subfolders[:] = sorted(_visible(subfolders))
        files += [Path(folder, name) for name in _visible(names)]
    if failures:
        raise DataError(*(_unlisted(error) for error in failures))
    return sorted(files)


def _unlisted(error: OSError) -> Problem:
    sentence = f"{error.filename} cannot be listed ({error.strerror}); check its permissions."
    return Problem(str(error.filename), sentence)


def _visible(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(".")]

"""What a folder lists as images: all that lies in it, folders named by repeats, a metadata file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from loralab.data.index import Entry, beside, find_images
from loralab.data.metadata import METADATA_NAMES, read_metadata
from loralab.errors import DataError, Problem

_NUMBERED = re.compile(r"(\d+)_(.+)")


class Listing(NamedTuple):
    """The images of a source before they are read.

    Attributes:
        entries: The images, sorted by path.
        bad: Why others cannot be used; the key is their file.
    """

    entries: list[Entry]
    bad: list[Problem]


def list_folder(root: Path, *, key: str, class_text: str | None = None) -> Listing:
    """List every image under ``root``, each with a caption file beside it."""
    paths, bad = find_images(root, key)
    return Listing([Entry(path, class_text=class_text) for path in paths], bad)


def list_numbered_folders(root: Path, *, key: str, class_text: str | None = None) -> Listing:
    """List the images of folders named by repeats and class text, such as ``10_red dog``.

    This is how kohya-ss/sd-scripts reads ``train_data_dir`` (``config_util``,
    ``generate_dreambooth_subsets_config_by_subdirs``). There, other folders and images beside them
    are left out; here they are refused.

    Args:
        root: Folder of the numbered folders.
        key: Config key of the folder.
        class_text: Caption of images without a file, in place of the folder's text.
    """
    paths, bad = find_images(root, key)
    folders = dict.fromkeys(_top(path, root) for path in paths)
    problems = [problem for name in folders if (problem := _misnamed(name, root, key))]
    problems += _empty(root, {*folders, *(_top(Path(problem.key), root) for problem in bad)})
    if problems:
        raise DataError(*problems)
    entries = []
    for path in paths:
        match = _NUMBERED.fullmatch(_top(path, root))
        assert match is not None, path
        entries.append(Entry(path, class_text=class_text or match[2], repeats=int(match[1])))
    return Listing(entries, bad)


def list_metadata(
    root: Path,
    *,
    key: str,
    metadata_file: str | None = None,
    caption_column: str = "text",
    separator: str = ",",
) -> Listing:
    """List the images that a metadata file names, with the captions that it gives.

    Args:
        root: Folder of the images.
        key: Config key of the folder.
        metadata_file: The file, under ``root`` or anywhere; None looks for one of
            ``METADATA_NAMES`` in ``root``.
        caption_column: Column of the captions in tables.
        separator: What stands between a caption and its tags in files of sd-scripts.
    """
    paths, bad = find_images(root, key)
    path = _metadata_path(root, metadata_file, key)
    rows = read_metadata(
        path, caption_column, separator=separator, column_key=beside(key, "caption_column")
    )
    find = _by_name(paths, root) if path.suffix.lower() == ".json" else _by_path(paths, path.parent)
    counts = Counter(found for row in rows if (found := find(row.file)) is not None)
    entries: dict[Path, Entry] = {}
    for row in rows:
        image = find(row.file)
        if image is None:
            sentence = f"{row.place} names {row.file}, which is not one image in {root}; mend it."
            bad.append(Problem(row.file, sentence))
        elif counts[image] > 1:
            sentence = f"{row.place} names {row.file}, which is listed twice; keep one of them."
            bad.append(Problem(str(image), sentence))
        elif not row.captions:
            sentence = f"{row.place} has no caption for {row.file}; write one."
            bad.append(Problem(str(image), sentence))
        else:
            entries[image] = Entry(image, row.captions)
    unlisted = [image for image in paths if image not in counts]
    for image in unlisted:
        sentence = f"{image} is not listed in {path.name}; add it there, or take it out."
        bad.append(Problem(str(image), sentence))
    return Listing([entries[image] for image in sorted(entries)], bad)


def repeated(listing: Listing, repeats: int) -> Listing:
    """Return the listing with every image so many times as often."""
    return listing._replace(
        entries=[replace(entry, repeats=entry.repeats * repeats) for entry in listing.entries]
    )


def _top(path: Path, root: Path) -> str:
    """Return the folder directly under the root that a file lies in; "" for the root itself."""
    *folders, _ = path.relative_to(root).parts
    return folders[0] if folders else ""


def _empty(root: Path, filled: Collection[str]) -> list[Problem]:
    """Return the folders that are named like one of images and hold none."""
    empty = (
        folder
        for folder in sorted(root.iterdir())
        if _NUMBERED.fullmatch(folder.name) and folder.is_dir() and folder.name not in filled
    )
    return [
        Problem(str(folder), f"{folder} holds no image; fill it or take it out.")
        for folder in empty
    ]


def _misnamed(name: str, root: Path, key: str) -> Problem | None:
    match = _NUMBERED.fullmatch(name)
    if match is not None and int(match[1]) > 0:
        return None
    layout = beside(key, "layout")
    if not name:
        sentence = (
            f"{layout} is numbered_folders, but {root} holds images outside of such folders; move "
            f"them into one named like 10_dog, or set {layout}=folder."
        )
    else:
        sentence = (
            f"{layout} is numbered_folders, but {root / name} is not named by repeats and text; "
            f"rename it to something like 10_dog, or set {layout}=folder."
        )
    return Problem(str(root / name), sentence)


def _metadata_path(root: Path, name: str | None, key: str) -> Path:
    option = beside(key, "metadata_file")
    if name is not None:
        path = root / name
        if not path.is_file():
            sentence = f"{option} is {name}; there is no such file in {root}. Name an existing one."
            raise DataError(Problem(option, sentence))
        return path
    found = [root / name for name in METADATA_NAMES if (root / name).is_file()]
    if len(found) == 1:
        return found[0]
    names = ", ".join(METADATA_NAMES)
    what = "none of" if not found else "more than one of"
    sentence = f"{option} is null, and {root} holds {what} {names}; name the file."
    raise DataError(Problem(option, sentence))


def _by_path(paths: Sequence[Path], folder: Path) -> Callable[[str], Path | None]:
    """Find an image by its path from the metadata file's folder."""
    known = {path.resolve(): path for path in paths}
    return lambda file: known.get((folder / file).resolve())


def _by_name(paths: Sequence[Path], root: Path) -> Callable[[str], Path | None]:
    """Find an image by whole path, path from the root, or name, with or without its extension.

    Files of sd-scripts name images by full path or bare name, and were often made elsewhere; the
    last resort is the name alone, if only one image has it.
    """
    whole = _unambiguous(
        (name, path)
        for path in paths
        for name in {str(path), str(path.resolve()), path.relative_to(root).as_posix()}
    )
    bare = _unambiguous((path.name, path) for path in paths)

    def find(file: str) -> Path | None:
        name = file.replace("\\", "/")
        last = name.rpartition("/")[2]
        candidates = [(whole, name), (whole, str(Path(name).resolve()))]
        candidates += [(bare, last), (bare, Path(last).stem)]
        return next(filter(None, (known.get(given) for known, given in candidates)), None)

    return find


def _unambiguous(names: Iterable[tuple[str, Path]]) -> dict[str, Path | None]:
    """Return whose each name is, with and without its extension; None where several have it."""
    known: dict[str, Path | None] = {}
    for name, path in names:
        for given in (name, name.removesuffix(path.suffix)):
            known[given] = path if given not in known else None
    return known

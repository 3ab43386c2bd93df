"""Metadata files: tables of Hugging Face image folders and the JSON files of sd-scripts."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from loralab.data.index import is_text, read_text, split_lines
from loralab.errors import Collector, DataError, Problem

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_FILE_COLUMN = "file_name"  # https://huggingface.co/docs/datasets/image_dataset#imagefolder


class Row(NamedTuple):
    """One image of a metadata file.

    Attributes:
        place: File and line, for messages.
        file: What the image is called there.
        captions: Lines of its caption; empty if there is none.
    """

    place: str
    file: str
    captions: tuple[str, ...]


def read_metadata(
    path: Path, caption_column: str, *, separator: str = ",", column_key: str
) -> list[Row]:
    """Return the rows of a metadata file; its extension says what it is.

    Args:
        path: A ``.jsonl``, ``.csv`` or ``.parquet`` table with a column ``file_name``, or a
            ``.json`` file of sd-scripts: image -> {caption, tags}.
        caption_column: Column of the captions in tables.
        separator: What is put between a caption and its tags.
        column_key: Config key of that column.

    Raises:
        DataError: If the file is not what its extension says, or with every row whose file name or
            caption is no text.
    """
    readers = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    extension = path.suffix.lower()
    if extension == ".json":
        return _sd_scripts(path, separator)
    if extension not in readers:
        raise _error(path, "is not a .jsonl, .csv, .parquet or .json file; name one of these")
    rows = list(readers[extension](path))
    columns = dict.fromkeys(column for _, row in rows for column in row)
    for key, column in (("", _FILE_COLUMN), (column_key, caption_column)):
        if column not in columns:
            remedy = f"set {key} to one of {', '.join(columns)}" if key else "name the images there"
            raise _error(path, f"has no column {column}; {remedy}")
    return _rows(
        _row, ((place, row.get(_FILE_COLUMN), row.get(caption_column)) for place, row in rows)
    )


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number},"
        row = _parsed(line, place)
        if not isinstance(row, dict):
            raise _error(place, "is not a JSON object; write one image a line")
        yield place, row


def _csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        lines = [(f"{path}, line {reader.line_num},", cells) for cells in reader if cells]
    except csv.Error as error:
        raise _error(
            f"{path}, line {reader.line_num},", f"is not CSV ({error}); mend it"
        ) from error
    (_, head), *rows = lines or [("", [])]
    for column, count in Counter(head).items():
        if count > 1:
            raise _error(path, f"has the column {column} twice; take one of them out")
    wrong = [
        Problem(place, f"{place} has {len(cells)} cells and the head has {len(head)}; put texts "
                "that have commas in quotes.")
        for place, cells in rows if len(cells) > len(head)
    ]  # fmt: skip
    if wrong:
        raise DataError(*wrong)
    for place, cells in rows:
        yield place, dict(zip(head, cells, strict=False))


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        remedy = "install it with: pip install 'loralab[parquet]'"
        raise _error(path, f"takes pyarrow to read; {remedy}") from error
    try:
        rows = read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise _error(path, "is not a whole parquet file; write it anew") from error
    for number, row in enumerate(rows, 1):
        yield f"{path}, row {number},", row


def _sd_scripts(path: Path, separator: str) -> list[Row]:
    """Read {image: {caption, tags}}; the caption is both, as in ``FineTuningDataset``."""
    content = _parsed(read_text(path), str(path))
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise _error(path, "is not a JSON object of the form {image: {caption, tags}}; mend it")
    between = f"{separator.rstrip()} "

    def row(file: str, entry: Mapping[str, Any]) -> Row:
        captions, tags = (_row(str(path), file, entry.get(n)).captions for n in ("caption", "tags"))
        both = tuple(f"{caption}{between}{tag}" for caption in captions for tag in tags)
        return Row(str(path), file, both or captions or tags)

    return _rows(row, content.items())


def _row(place: str, file: Any, value: Any) -> Row:
    """Return a row whose caption is a text or a list of texts; nan, as of pandas, is none."""
    if not isinstance(file, str) or not file:
        raise _error(place, f"names no image: {_FILE_COLUMN} is {file!r}; write a path")
    texts = [text for text in (value if isinstance(value, list) else [value]) if text == text]
    for text in texts:
        if not isinstance(text, str | None):
            remedy = "write text, or a list of texts"
            raise _error(place, f"has {text!r} as the caption of {file}; {remedy}")
        if text is not None and not is_text(text):
            raise _error(
                place, f"has a character that is no text in the caption of {file}; write it anew"
            )
    return Row(place, file, tuple(line for text in texts if text for line in split_lines(text)))


def _rows(make: Callable[..., Row], given: Iterable[Sequence[Any]]) -> list[Row]:
    """Make rows; a DataError has the problems of all."""
    problems: list[Problem] = []
    collect = Collector(problems)
    rows = [collect(make, *values) for values in given]
    if problems:
        raise DataError(*problems)
    return [row for row in rows if row is not None]


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _error(place, f"is not JSON ({error}); mend it") from error


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; Python's reader would keep the last of two equal keys and say nothing."""
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f'"{key}" stands there twice')
    return dict(pairs)


def _error(place: Path | str, says: str) -> DataError:
    return DataError(Problem(str(place), f"{place} {says}."))

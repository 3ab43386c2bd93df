"""Metadata files: tables of Hugging Face image folders and the JSON files of sd-scripts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from loralab.data.index import read_text, split_lines
from loralab.errors import DataError, Problem

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
        DataError: If the file is not what its extension says.
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
    return [
        Row(place, str(row.get(_FILE_COLUMN) or ""), _lines(row.get(caption_column)))
        for place, row in rows
    ]


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
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    for row in reader:
        yield f"{path}, line {reader.line_num},", row


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
    rows = []
    for file, entry in content.items():
        captions, tags = _lines(entry.get("caption")), _lines(entry.get("tags"))
        between = f"{separator.rstrip()} "
        both = tuple(f"{caption}{between}{tag}" for caption in captions for tag in tags)
        rows.append(Row(str(path), file, both or captions or tags))
    return rows


def _lines(value: Any) -> tuple[str, ...]:
    """Return the lines of a text or of a list of texts."""
    texts = value if isinstance(value, list) else [value]
    return tuple(line for text in texts if text is not None for line in split_lines(str(text)))


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _error(place, f"is not JSON ({error}); mend it") from error


def _error(place: Path | str, says: str) -> DataError:
    return DataError(Problem(str(place), f"{place} {says}."))

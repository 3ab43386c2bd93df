"""Rules across the fields that say where images come from; see `rules.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from loralab.config.choices import SourceLayout
from loralab.config.records import RunConfig
from loralab.config.source_records import given_sources
from loralab.errors import Problem


def images_are_named_once(config: RunConfig) -> Iterator[Problem]:
    """Demand either the short form of one source or a list of sources."""
    data = config.data
    if data.image_dir is None and not data.sources:
        yield Problem(
            "data.image_dir",
            "data.image_dir is null and data.sources is empty; set data.image_dir=FOLDER to your "
            "images.",
        )
    short = {
        "image_dir": data.image_dir is not None,
        "metadata_file": data.metadata_file is not None,
        "repeats": data.repeats != 1,
    }
    for name in (name for name, is_given in short.items() if is_given and data.sources):
        neutral = 1 if name == "repeats" else "null"
        yield Problem(
            f"data.{name}",
            f"data.{name} is {getattr(data, name)}, but data.sources is given; set {name} in each "
            f"of the sources, and data.{name}={neutral}.",
        )


def metadata_options_have_metadata(config: RunConfig) -> Iterator[Problem]:
    """Refuse a metadata file that the layout would not read."""
    for group, source in given_sources(config.data).items():
        if source.metadata_file is not None and source.layout is not SourceLayout.metadata:
            assert source.layout is not None
            yield Problem(
                f"{group}.metadata_file",
                f"{group}.metadata_file is {source.metadata_file}, but {group}.layout is "
                f"{source.layout.name}; set {group}.layout=metadata or leave the file out.",
            )


def limits_leave_room(config: RunConfig) -> Iterator[Problem]:
    """Refuse a filter that no image passes."""
    limits = config.data.image_filter
    if limits.min_side is None or limits.max_side is None or limits.min_side <= limits.max_side:
        return
    yield Problem(
        "data.image_filter.min_side",
        f"data.image_filter.min_side is {limits.min_side}; it must not be above "
        f"data.image_filter.max_side ({limits.max_side}).",
    )


def held_out_files_are_named_once(config: RunConfig) -> Iterator[Problem]:
    """Refuse the same file twice."""
    files = [PurePath(file) for file in config.validation.files]
    for file in dict.fromkeys(file for file in files if files.count(file) > 1):
        yield Problem(
            "validation.files", f"validation.files has {file} more than once; name it once."
        )


SOURCE_RULES = (
    images_are_named_once,
    metadata_options_have_metadata,
    limits_leave_room,
    held_out_files_are_named_once,
)

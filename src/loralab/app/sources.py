"""Configuration -> sources: what is trained on, what stands beside it, what is held out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from loralab.app.caching import open_file_index
from loralab.app.captions import check_wildcards
from loralab.config.choices import OnBadImage, SourceLayout
from loralab.config.data_records import CaptionRecord
from loralab.config.records import RunConfig
from loralab.config.source_records import SourceRecord, caption_options, given_sources
from loralab.data.augment import Augmentation
from loralab.data.captions import CaptionPipeline
from loralab.data.file_index import FileIndex
from loralab.data.images import PixelOptions
from loralab.data.index import Entry, ImageRecord, check_extension, read_images
from loralab.data.listing import (
    Listing,
    list_folder,
    list_metadata,
    list_numbered_folders,
    repeated,
)
from loralab.data.sources import Source
from loralab.errors import Collector, ConfigError, DataError, Problem


@dataclass(frozen=True)
class Sources:
    """The images of a run, before they have sizes.

    Attributes:
        training: What is trained on.
        prior: Class images beside it.
        held_out: What validation measures.
        skipped: Why images were left out; the key is their file.
        problems: Why images cannot be used, if they stop the run; the others can be checked on.
        files: What was read, to be remembered once the run is sure to start.
    """

    training: tuple[Source, ...]
    prior: Source | None
    held_out: tuple[Source, ...]
    skipped: tuple[Problem, ...]
    problems: tuple[Problem, ...]
    files: FileIndex


@dataclass
class _Findings:
    """What reading came upon: problems of folders, and images that cannot be used."""

    skips: bool
    files: FileIndex
    problems: list[Problem] = field(default_factory=list)
    bad: list[Problem] = field(default_factory=list)


def read_sources(config: RunConfig) -> Sources:
    """Scan every folder of the configuration and choose what is held out.

    Raises:
        DataError: With every problem of every folder, if one cannot be used at all.
        ConfigError: If nothing is left to train on, or nothing is held out.
    """
    found = _Findings(config.data.on_bad_image is OnBadImage.skip, open_file_index(config))
    collect = Collector(found.problems)
    given = given_sources(config.data)
    training = [collect(_read, config, found, group, source) for group, source in given.items()]
    class_images = collect(_read_class_images, config, found)
    held_out = [source for source in [collect(_read_folder, config, found)] if source is not None]
    files = collect(_read_files, config, found, [source for source in training if source])
    sources = [source for source in training if source is not None]
    stopping = () if found.skips else tuple(found.bad)
    if found.problems or (stopping and not any(source.records for source in sources)):
        raise DataError(*stopping, *found.problems)
    if config.validation.fraction and not stopping:
        chosen = choose_held_out(sources, config.validation.fraction)
        held_out = [_only(source, chosen) for source in sources]
    held_out = [source for source in [*held_out, *(files or [])] if source.records]
    digests = {record.digest for source in held_out for record in source.records}
    copies = _copies(held_out, [*sources, *([class_images] if class_images else [])])
    sources = [without(source, digests) for source in sources]
    if not any(source.records for source in sources):
        raise ConfigError(*stopping, _all_held_out(config))
    if class_images is not None:  # what is held out must not be learnt as a class image either
        class_images = without(class_images, digests)
    return Sources(
        training=tuple(sources),
        prior=class_images,
        held_out=tuple(held_out),
        skipped=(*(found.bad if found.skips else ()), *copies),
        problems=stopping,
        files=found.files,
    )


def choose_held_out(sources: Sequence[Source], fraction: float) -> set[str]:
    """Return the digests of the images to hold out.

    Each is chosen by its content alone, so that adding files moves none and copies stay together.

    Raises:
        ConfigError: None or all of the images are chosen.
    """
    places = {
        record.digest: int(record.digest[:8], 16) / 16**8
        for source in sources
        for record in source.records
    }
    chosen = {digest for digest, place in places.items() if place < fraction}
    if not chosen or len(chosen) == len(places):
        raise ConfigError(_one_sided(fraction, places.values()))
    return chosen


def _copies(held_out: Sequence[Source], others: Sequence[Source]) -> list[Problem]:
    """Return why files are neither measured nor trained on: they are copies of measured ones."""
    measured: dict[str, Path] = {}
    for source in held_out:
        for record in source.records:
            measured.setdefault(record.digest, record.path)
    copies = [
        Problem(
            str(record.path),
            f"{record.path} is a copy of {measured[record.digest]}, which is held out: a content "
            "is measured once and not trained on.",
        )
        for source in (*held_out, *others)
        for record in source.records
        if record.digest in measured
        and record.path.absolute() != measured[record.digest].absolute()
    ]
    return list(dict.fromkeys(copies))


def without(source: Source, digests: Collection[str]) -> Source:
    """Return the source without some of its contents."""
    return replace(source, records=tuple(r for r in source.records if r.digest not in digests))


def caption_pipeline(options: CaptionRecord) -> CaptionPipeline:
    """Return what happens to captions; the options have the names of the pipeline's own."""
    names = {item.name for item in fields(CaptionPipeline)} & {
        item.name for item in fields(options)
    }
    given = {name: getattr(options, name) for name in names - {"tag_rule"}}
    return CaptionPipeline(**given, tag_rule=options.tag_rule.name)


def _read(config: RunConfig, found: _Findings, group: str, source: SourceRecord) -> Source:
    """Read one source; images that are skipped are noted."""
    key, extension = f"{group}.image_dir", source.caption_extension
    assert extension is not None
    check_extension(extension, key)
    listing = _list(source, config.data.captions.separator, key)
    scan = read_images(
        listing.entries,
        key=key,
        caption_extension=extension,
        weight=source.weight,
        files=found.files,
    )
    bad = [*listing.bad, *scan.bad]
    found.bad += bad
    if not scan.records and found.skips:
        sentence = (
            f"{key} is {source.image_dir}; none of its images can be used. The first of "
            f"{len(bad)} reasons: {bad[0]}"
        )
        raise DataError(Problem(key, sentence))
    return _source(config, source, scan.records)


def _list(source: SourceRecord, separator: str, key: str) -> Listing:
    root, class_text = Path(source.image_dir), source.class_text
    if source.layout is SourceLayout.metadata:
        assert source.caption_column is not None
        listing = list_metadata(
            root,
            key=key,
            metadata_file=source.metadata_file,
            caption_column=source.caption_column,
            separator=separator,
        )
    elif source.layout is SourceLayout.numbered_folders:
        listing = list_numbered_folders(root, key=key, class_text=class_text)
    else:
        listing = list_folder(root, key=key, class_text=class_text)
    return repeated(listing, source.repeats)


def _read_class_images(config: RunConfig, found: _Findings) -> Source | None:
    data, prior = config.data, config.data.prior
    if prior.image_dir is None:
        return None
    options = SourceRecord(
        image_dir=prior.image_dir,
        layout=prior.layout or data.layout,
        caption_column=data.caption_column,
        caption_extension=prior.caption_extension or data.caption_extension,
        class_text=prior.class_text,
        weight=prior.weight,
        augmentations=data.augmentations,
    )
    return replace(_read(config, found, "data.prior", options), is_prior=True)


def _read_folder(config: RunConfig, found: _Findings) -> Source | None:
    data, folder = config.data, config.validation.folder
    if folder is None:
        return None
    has_metadata = data.layout is SourceLayout.metadata
    options = SourceRecord(
        image_dir=folder,
        layout=SourceLayout.metadata if has_metadata else SourceLayout.folder,
        caption_column=data.caption_column,
        caption_extension=data.caption_extension,
        class_text=data.class_text,
        augmentations=[],
    )
    key = "validation.folder"
    listing = _list(options, data.captions.separator, key)
    scan = read_images(
        listing.entries, key=key, caption_extension=data.caption_extension, files=found.files
    )
    found.bad += [*listing.bad, *scan.bad]
    return _source(config, options, scan.records)


def _read_files(config: RunConfig, found: _Findings, training: Sequence[Source]) -> list[Source]:
    """Return the images named one by one: as their training source has them, or by themselves."""
    paths = {Path(file).resolve(): Path(file) for file in config.validation.files}
    known = [
        _only(source, {r.digest for r in source.records if r.path.resolve() in paths})
        for source in training
    ]
    for source in known:
        for record in source.records:
            paths.pop(record.path.resolve(), None)
    missing = [path for path in paths.values() if not path.is_file()]
    found.problems += [
        Problem("validation.files", f"validation.files has {path}, which is not a file; mend it.")
        for path in missing
    ]
    data = config.data
    entries = [Entry(path, class_text=data.class_text) for path in paths.values()
               if path not in missing]  # fmt: skip
    scan = read_images(
        entries,
        key="validation.files",
        caption_extension=data.caption_extension,
        files=found.files,
    )
    found.bad += scan.bad
    options = SourceRecord(image_dir="validation.files", augmentations=[])
    return [*known, _source(config, options, scan.records)]


def _source(config: RunConfig, options: SourceRecord, records: Sequence[ImageRecord]) -> Source:
    data = config.data
    assert options.augmentations is not None
    source = Source(
        options.image_dir,
        tuple(records),
        captions=caption_pipeline(caption_options(options, data)),
        augmentation=Augmentation(
            [kind.name for kind in options.augmentations],
            flip_probability=data.flip_probability,
            seed=config.seed,
        ),
        pixels=PixelOptions(background=data.background, resize_filter=data.resize_filter.name),
    )
    check_wildcards(source)
    return source


def _only(source: Source, digests: Collection[str]) -> Source:
    """Return some contents of a source, as validation sees them: each file once."""
    records = (record for record in source.records if record.digest in digests)
    return replace(
        source, records=tuple(replace(record, repeats=1, weight=1.0) for record in records)
    )


def _all_held_out(config: RunConfig) -> Problem:
    validation = config.validation
    key = "validation.folder" if validation.folder else "validation.files"
    sentence = f"{key} holds out every training image; name fewer, or other ones."
    return Problem(key, sentence)


def _one_sided(fraction: float, places: Collection[float]) -> Problem:
    if min(places) >= fraction:
        what, remedy = "none", f"raise it to {min(places) + 0.0005:.3f} or more"
    else:
        what, remedy = "all", f"lower it to {max(places) - 0.0005:.3f} or less"
    sentence = (
        f"validation.fraction is {fraction:g}, which holds out {what} of the {len(places)} "
        f"images; {remedy}, or name a validation.folder."
    )
    return Problem("validation.fraction", sentence)

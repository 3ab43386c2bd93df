"""Any mapping -> `RunConfig`, every problem at once; and back to YAML.

Hydra checks keys and types while composing, but `+group.key=...` passes it silently, and configs
also come from plain YAML (resume, tools), where types are gone. So every level is compared with
its dataclass here, whatever the source.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from loralab.config import data_records
from loralab.config.compat import apply_compat
from loralab.config.records import RunConfig
from loralab.config.rules import check_rules
from loralab.errors import ConfigError, Problem

_MISSING_REMEDY = {
    "data.image_dir": "Set data.image_dir=FOLDER to your images.",
    "model.path": "Set model.path=FOLDER to a base model in diffusers layout.",
}

# Other words for what Lightning calls the precision of training.
PRECISION_WORDS: dict[Any, str] = {
    False: "32-true", "no": "32-true", "fp32": "32-true", True: "bf16-mixed",
    "bf16": "bf16-mixed", "fp16": "16-mixed",
}  # fmt: skip


def parse_config(raw: Mapping[str, Any] | DictConfig) -> RunConfig:
    """Return the typed configuration.

    Args:
        raw: A composed Hydra config or plain YAML data.

    Raises:
        ConfigError: Unknown key, wrong type, missing value, out of range, or a rule across fields;
            all of them together.
    """
    if isinstance(raw, DictConfig):
        raw = _plain(raw)
    raw = fill_shorthand(raw)
    problems: list[Problem] = []
    config = _convert(RunConfig, raw, "", problems)
    assert isinstance(config, RunConfig)
    problems += _range_problems(config)
    word = config.trainer.get("precision") if config.trainer else None
    if isinstance(word, bool | str) and word in PRECISION_WORDS:
        config.trainer["precision"] = PRECISION_WORDS[word]
    if not problems:  # rules may rely on types and ranges
        problems = apply_compat(config) + check_rules(config)
    if problems:
        raise ConfigError(*problems)
    return config


def fill_shorthand(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the data with data.image_dir null where data.sources stands in for it."""
    data = raw.get("data")
    if isinstance(data, Mapping) and data.get("sources") and data.get("image_dir") == MISSING:
        return {**raw, "data": {**data, "image_dir": None}}
    return raw


def to_plain(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as plain data: what `config.yaml` of a run holds."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Enum):
            return value.name
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value

    return plain(config)  # type: ignore[no-any-return]


def to_yaml(config: RunConfig) -> str:
    """Return the configuration as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.create(without_references(to_plain(config))))


def without_references(value: Any) -> Any:
    """Return plain data of which no text is taken for an interpolation such as ``${name}``."""
    return _in_texts(value, lambda found: found[1] * 2 + r"\${")


def as_written(value: Any) -> Any:
    """Return what `without_references` was given; references that stand there stay texts."""
    return _in_texts(value, lambda found: found[1][: len(found[1]) // 2] + "${")


def _in_texts(value: Any, change: Callable[[re.Match[str]], str]) -> Any:
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", change, value)
    if isinstance(value, dict):
        return {key: _in_texts(item, change) for key, item in value.items()}
    return [_in_texts(item, change) for item in value] if isinstance(value, list) else value


def walk_options(
    record: Any, prefix: str = ""
) -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Yield (full key, field, value) of every leaf option of a record or a record type.

    Of a list of records first the list, then the options of each, ``data.sources[0].repeats``; of
    a type, where nothing is given yet, ``data.sources[].repeats``.
    """
    is_type = isinstance(record, type)
    hints = get_type_hints(record if is_type else type(record))
    for item in dataclasses.fields(record):
        key, hint = f"{prefix}{item.name}", hints[item.name]
        value = hint if is_type else getattr(record, item.name)
        if dataclasses.is_dataclass(hint):
            yield from walk_options(value, f"{key}.")
            continue
        yield key, item, value
        if (kind := record_of_list(hint)) is not None:
            listed = [("", kind)] if is_type else enumerate(value or ())
            for place, entry in listed:
                yield from walk_options(entry, f"{key}[{place}].")


def record_of_list(hint: Any) -> type | None:
    """Return R when a type is list[R] of records."""
    kinds = [kind for kind in get_args(hint) if dataclasses.is_dataclass(kind)]
    return kinds[0] if get_origin(hint) is list and kinds else None  # type: ignore[return-value]


def nearest(word: str, candidates: Iterable[str], prefix: str = "") -> str:
    """Return "Did you mean x?" or, when nothing is near, the list of candidates.

    The prefix stands before a suggestion, so that it can be copied to the command line.
    """
    options = sorted(candidates)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {prefix}{close[0]}?"
    if not options:
        return "Remove it."
    return f"Allowed: {', '.join(options)}."


def _plain(raw: DictConfig) -> dict[str, Any]:
    """Resolve interpolations; a reference to a missing value stays missing."""
    try:
        _blank_references_to_missing(raw)
        plain = OmegaConf.to_container(raw, resolve=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        message = f"{key} refers to something that does not exist ({_first_line(error)})."
        raise ConfigError(Problem(key, message)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _blank_references_to_missing(node: DictConfig) -> None:
    """Turn an interpolation of a `???` value into `???`, so that the root cause is reported."""
    from omegaconf import open_dict
    from omegaconf.errors import InterpolationToMissingValueError

    with open_dict(node):
        for key in list(node):
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_interpolation():
                if not child._is_none() and not child._is_missing():
                    _blank_references_to_missing(child)
            elif child is not None and child._is_interpolation():
                try:
                    _ = node[key]
                except InterpolationToMissingValueError:
                    child._set_value("???")


def _convert(record_type: type, raw: Any, prefix: str, problems: list[Problem]) -> Any:
    """Build one record from plain data, collecting problems instead of raising."""
    hints = get_type_hints(record_type)
    fields = {item.name: item for item in dataclasses.fields(record_type)}
    if not isinstance(raw, Mapping):
        key = prefix.rstrip(".")
        problems.append(
            Problem(key, f"{key} is {raw!r}; it must be a group with {', '.join(fields)}.")
        )
        raw = {}
    for name in raw:
        if name not in fields:
            key = f"{prefix}{name}"
            problems.append(
                Problem(key, f"{key} is not an option. {nearest(str(name), fields, prefix)}")
            )
    values: dict[str, Any] = {}
    node = OmegaConf.structured(record_type)  # converts by the rules Hydra itself converts with
    for name, item in fields.items():
        key, hint = f"{prefix}{name}", hints[name]
        if dataclasses.is_dataclass(hint):
            values[name] = _convert(hint, raw.get(name, {}), f"{key}.", problems)  # type: ignore[arg-type]
        elif (kind := record_of_list(hint)) is not None and isinstance(raw.get(name), list):
            values[name] = convert_list(kind, raw[name], key, problems)
        elif (part := item.metadata.get("part_of")) is not None:
            kind = getattr(data_records, part)
            values[name] = _convert_part(kind, raw.get(name) or {}, f"{key}.", problems)
        else:
            values[name] = _leaf(node, item, raw, key, problems)
    return record_type(**values)


def convert_list(
    record_type: type, raw: Sequence[Any], key: str, problems: list[Problem]
) -> list[Any]:
    """Build a list of records from plain data, collecting problems instead of raising."""
    return [
        _convert(record_type, entry, f"{key}[{place}].", problems)
        for place, entry in enumerate(raw)
    ]


def _convert_part(
    record_type: type, raw: Any, prefix: str, problems: list[Problem]
) -> dict[str, Any]:
    """Return those options of a record that are given, each in its declared type."""
    record = _convert(record_type, raw, prefix, problems)
    ranges = _range_problems(record, prefix)
    problems += [problem for problem in ranges if problem.key.removeprefix(prefix) in raw]
    return {item.name: getattr(record, item.name)
            for item in dataclasses.fields(record) if item.name in raw}  # fmt: skip


def _leaf(
    node: DictConfig,
    item: dataclasses.Field[Any],
    raw: Mapping[str, Any],
    key: str,
    problems: list[Problem],
) -> Any:
    """Return one value in its declared type; a problem leaves None."""
    try:
        if item.name in raw:
            value = without_references(raw[item.name])  # those of the user are resolved by now
            OmegaConf.update(node, item.name, value, merge=False)
        value = node[item.name]
        if OmegaConf.is_config(value):
            return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        return value
    except OmegaConfBaseException as error:
        problems.append(_leaf_problem(error, item, raw, key))
        return None  # skipped by the range check; rules do not run any more


def _leaf_problem(
    error: Exception, item: dataclasses.Field[Any], raw: Mapping[str, Any], key: str
) -> Problem:
    value = raw.get(item.name, "???")
    if value == "???":
        remedy = _MISSING_REMEDY.get(key, f"Set {key}=...")
        return Problem(key, f"{key} has no value and needs one. {remedy}")
    return Problem(key, f"{key} is {value!r}; it must be {describe_type(item)}.")


def describe_type(item: dataclasses.Field[Any]) -> str:
    """Say in words what a field takes, e.g. "a whole number" or "one of a, b"."""
    text = str(item.type)
    plain, enums = text.removesuffix(" | None"), _enums()
    words = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "str": "text",
        "list[str]": "a list of texts, like [a, b]",
        "list[float]": "a list of numbers, like [1, 0.5]",
        "list[int]": "a list of whole numbers, like [100, 200]",
        "list[Layout]": "a list of " + ", ".join(enums["Layout"]),
        "list[AverageUse]": "a list of " + ", ".join(enums["AverageUse"]),
        "list[AugmentationKind]": "a list of " + ", ".join(enums["AugmentationKind"]),
        "list[SourceRecord]": "a list of sources, like [{image_dir: a}, {image_dir: b}]",
        "dict[str, Any]": "a group of keys",
    }
    described = (
        "one of " + ", ".join(enums[plain])
        if plain in enums
        else words.get(plain, "a group of keys")
    )
    return described + (" or null" if plain != text else "")


def _enums() -> dict[str, list[str]]:
    from loralab.config import choices, model_records

    return {
        name: [member.name for member in kind]
        for name, kind in {**vars(choices), **vars(model_records)}.items()
        if isinstance(kind, type) and issubclass(kind, Enum) and kind is not Enum
    }


def _range_problems(record: Any, prefix: str = "") -> list[Problem]:
    """Compare every number with the range in its field's metadata."""
    problems = []
    for key, item, value in walk_options(record, prefix):
        low, high = item.metadata.get("low"), item.metadata.get("high")
        if isinstance(value, float) and not math.isfinite(value):
            problems.append(Problem(key, f"{key} is {value}; it must be a finite number."))
            continue
        if value is None or (low is None and high is None):
            continue
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            if high is None:
                allowed = f"at least {low:g}"
            elif low is None:
                allowed = f"at most {high:g}"
            else:
                allowed = f"between {low:g} and {high:g}"
            problems.append(Problem(key, f"{key} is {value}; it must be {allowed}."))
    return problems


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

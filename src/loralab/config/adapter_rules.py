"""Rules of the adapter: which setting means something for which kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from loralab.config.adapter_records import AdaptedPartRecord
from loralab.config.choices import AdapterKind, DropoutPlace, WeightNorm
from loralab.config.records import RunConfig
from loralab.errors import Problem

# Setting -> (its neutral value, kinds that know it).
_KINDS_OF_SETTINGS: dict[str, tuple[Any, str]] = {
    "dropout": (0.0, "lora dora"),
    "dropout_place": (DropoutPlace.input, "lora"),
    "rank_dropout": (0.0, "lora loha lokr tucker oft"),
    "module_dropout": (0.0, "lora loha lokr tucker dylora oft boft"),
    "rank_stabilized": (False, "lora dora loha lokr tucker dylora"),
    "decompose_both": (False, "lokr"),
    "decompose_factor": (-1, "lokr"),
    "constraint": (0.0, "oft boft"),
    "lora_plus_ratio": (1.0, "lora dora"),
    "weight_norm.type": (WeightNorm.none, "lora dora loha lokr tucker dylora"),
}
WITHOUT_DIFFUSERS_NAMES = (AdapterKind.tucker, AdapterKind.oft, AdapterKind.boft)


def _parts(config: RunConfig) -> dict[str, AdaptedPartRecord]:
    parts = {"unet": config.adapter.unet, "text_encoder": config.adapter.text_encoder}
    return {name: part for name, part in parts.items() if part.enabled}


def _settings_mean_something(config: RunConfig) -> Iterator[Problem]:
    kind = config.adapter.kind.name
    values = {
        name: (
            config.adapter.weight_norm.type
            if name == "weight_norm.type"
            else getattr(config.adapter, name)
        )
        for name in _KINDS_OF_SETTINGS
    }
    for name, value in values.items():
        neutral, kinds = _KINDS_OF_SETTINGS[name]
        if value != neutral and kind not in kinds.split():
            shown = getattr(value, "name", value)
            yield Problem(
                f"adapter.{name}",
                f"adapter.{name} is {shown}, but kind {kind} does not know it; it is for "
                f"{', '.join(kinds.split())}.",
            )
    for part, record in _parts(config).items():
        if record.lora_plus_ratio not in (None, 1.0) and kind not in ("lora", "dora"):
            key = f"adapter.{part}.lora_plus_ratio"
            yield Problem(key, f"{key} is {record.lora_plus_ratio:g}, but kind {kind} does not "
                          "know it; it is for lora, dora.")  # fmt: skip
    if kind == "loha" and config.adapter.rank_dropout > 0.5:
        yield Problem(
            "adapter.rank_dropout",
            f"adapter.rank_dropout is {config.adapter.rank_dropout:g}; of kind loha it must be at "
            "most 0.5, because PEFT divides by the share of rows that is kept, which may be 0.",
        )


def pattern_values(texts: list[str]) -> dict[str, float]:
    """Return the number of each pattern of a list like ``["to_q:8"]``.

    Raises:
        ValueError: A text does not end in a colon and a number.
    """
    pairs = (text.rpartition(":") for text in texts)
    return {pattern.strip(): float(number) for pattern, _, number in pairs}


def _patterns_have_values_in_range(config: RunConfig) -> Iterator[Problem]:
    for part, record in _parts(config).items():
        for name, least in (("rank", 0), ("alpha", 1e-6), ("lr_scale", 0.0)):
            key = f"adapter.{part}.{name}_by_pattern"
            texts: list[str] = getattr(record, f"{name}_by_pattern")
            for text in texts:
                try:
                    ((pattern, value),) = pattern_values([text]).items()
                except ValueError:
                    pattern, value = "", math.nan
                is_number = math.isfinite(value) and (name != "rank" or value == int(value))
                if not (pattern and is_number and value >= least):
                    yield Problem(
                        key,
                        f"{key} holds {text!r}; it must be a name or pattern, a colon and a number "
                        f"of at least {least:g}, like to_q:8.",
                    )


def _blocks_have_values_in_range(config: RunConfig) -> Iterator[Problem]:
    for name in ("ranks", "alphas", "conv_ranks", "conv_alphas"):
        values: list[float] = getattr(config.adapter.blocks, name)
        if bad := [value for value in values if not (math.isfinite(value) and value >= 0)]:
            key = f"adapter.blocks.{name}"
            yield Problem(key, f"{key} holds {bad[0]:g}; its values must be at least 0.")


def _something_is_trained_to_the_end(config: RunConfig) -> Iterator[Problem]:
    parts = _parts(config)
    if parts and all(part.freeze_after_steps for part in parts.values()):
        name = next(iter(parts))
        key = f"adapter.{name}.freeze_after_steps"
        yield Problem(
            key,
            f"{key} is {parts[name].freeze_after_steps}, and no other part is trained to the end; "
            "leave one part without it, or make the run shorter.",
        )


def _file_settings_need_a_file(config: RunConfig) -> Iterator[Problem]:
    if config.adapter.rank_from_file and config.adapter.init_from is None:
        yield Problem(
            "adapter.rank_from_file",
            "adapter.rank_from_file is true, but adapter.init_from names no file; set it.",
        )


def _some_layout_can_hold_the_kind(config: RunConfig) -> Iterator[Problem]:
    layouts = {layout.name for layout in config.export.layouts}
    kind = config.adapter.kind
    if layouts == {"diffusers"} and kind in WITHOUT_DIFFUSERS_NAMES:
        yield Problem(
            "export.layouts",
            f"export.layouts is [diffusers], which has no names for kind {kind.name}; use [kohya].",
        )


def _thumbnails_need_previews(config: RunConfig) -> Iterator[Problem]:
    side, key = config.export.modelspec.thumbnail, "export.modelspec.thumbnail"
    if side is not None and not config.preview.prompts:
        yield Problem(
            key,
            f"{key} is {side}, but no previews are drawn; name prompts in preview.prompts, or set "
            "it to null.",
        )


ADAPTER_RULES: tuple[Callable[[RunConfig], Iterator[Problem]], ...] = (
    _settings_mean_something,
    _patterns_have_values_in_range,
    _blocks_have_values_in_range,
    _something_is_trained_to_the_end,
    _file_settings_need_a_file,
    _some_layout_can_hold_the_kind,
    _thumbnails_need_previews,
)

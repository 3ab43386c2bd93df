"""Rules across the fields of buckets, augmentation, masks and the latent cache; see `rules.py`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from loralab.config.choices import AugmentationKind, CacheStorage, Masks
from loralab.config.records import RunConfig
from loralab.errors import Problem

_COLOR = re.compile(r"white|black|#[0-9a-fA-F]{6}")
_SIZE = re.compile(r"([1-9]\d*)x([1-9]\d*)")


def parse_phase(text: str) -> tuple[float, int] | None:
    """Return share and side of a text like ``0.5:512``; None when it is not one."""
    share, colon, side = text.partition(":")
    try:
        return (float(share), int(side)) if colon else None
    except ValueError:
        return None


def resolution_schedule_ascends(config: RunConfig) -> Iterator[Problem]:
    """Demand SHARE:SIDE from 0 on, ascending, of sides that the buckets can be scaled to."""
    key, step, most = "data.resolution_schedule", config.data.buckets.step, config.data.resolution
    texts = config.data.resolution_schedule
    phases = [parse_phase(text) for text in texts]
    for text, phase in zip(texts, phases, strict=True):
        if phase is None or not 0 <= phase[0] < 1:
            yield Problem(key, f"{key} has {text!r}; write SHARE:SIDE with a share from 0 to below "
                          "1, like 0.5:512.")  # fmt: skip
        elif phase[1] % step or not 0 < phase[1] <= most:
            limits = f"data.buckets.step ({step}) of at most data.resolution ({most})."
            yield Problem(key, f"{key} has {text!r}; its side must be a multiple of {limits}")
    shares = [phase[0] for phase in phases if phase is not None]
    if shares and (shares[0] != 0 or sorted(set(shares)) != shares):
        yield Problem(key, f"{key} is [{', '.join(texts)}]; its shares must begin at 0 and ascend.")


def bucket_sizes_are_sizes(config: RunConfig) -> Iterator[Problem]:
    """Demand WIDTHxHEIGHT, whole latent cells, and each size once."""
    key, sizes = "data.buckets.sizes", config.data.buckets.sizes
    for text in sizes:
        found = _SIZE.fullmatch(text)
        if found is None:
            says = "a size is written WIDTHxHEIGHT in px, for example 832x1216."
        elif int(found[1]) % 8 or int(found[2]) % 8:
            near = "x".join(str(max(8, round(int(side) / 8) * 8)) for side in found.groups())
            says = f"sides must be multiples of 8. Use {near}."
        else:
            continue
        yield Problem(key, f"{key} has {text!r}; {says}")
    for text, count in Counter(sizes).items():
        if count > 1:
            yield Problem(key, f"{key} has {text} {count} times; name each size once.")


def one_way_to_buckets(config: RunConfig) -> Iterator[Problem]:
    """Refuse options of buckets that another one makes idle."""
    buckets = config.data.buckets
    chosen = [("no_upscale", buckets.no_upscale, "true"), ("sizes", buckets.sizes, "given")]
    given = [(f"data.buckets.{name}", word) for name, value, word in chosen if value]
    if not buckets.enabled:
        for key, word in given:
            yield Problem(
                key,
                f"{key} is {word}, but data.buckets.enabled is false, which cuts every image to "
                "the square; leave one of them out.",
            )
    elif len(given) == 2:
        yield Problem(
            "data.buckets.sizes",
            "data.buckets.sizes is given and data.buckets.no_upscale is true, which gives each "
            "image a size of its own; leave one of them out.",
        )


def augmentations_agree(config: RunConfig) -> Iterator[Problem]:
    """Refuse two words for one thing, and a word twice."""
    for key, kinds in _augmentations(config).items():
        for kind, count in Counter(kinds).items():
            if count > 1:
                yield Problem(key, f"{key} has {kind.name} {count} times; name each once.")
        if AugmentationKind.flip in kinds and config.data.flip_probability:
            yield Problem(
                key,
                f"{key} has flip, which mirrors half of the visits, and data.flip_probability is "
                f"{config.data.flip_probability:g}; give one of them.",
            )
        if {AugmentationKind.random_crop, AugmentationKind.crop_jitter} <= set(kinds):
            yield Problem(
                key,
                f"{key} has random_crop and crop_jitter; both say where to cut, give one of them.",
            )


def cached_images_change_little(config: RunConfig) -> Iterator[Problem]:
    """Demand stored variants where a cache meets changes that have no end."""
    cache, any_endless = config.data.latent_cache, False
    for key, kinds in _augmentations(config).items():
        endless = [kind.name for kind in kinds if kind is not AugmentationKind.flip]
        any_endless |= bool(endless)
        if endless and cache.enabled and cache.variants == 1:
            yield Problem(
                key,
                f"{key} has {' and '.join(endless)}, but the latent cache keeps one variant of "
                "each image; set data.latent_cache.variants=4 to keep several, or "
                "data.latent_cache.enabled=false to encode anew at every step.",
            )
    if cache.variants > 1 and not (any_endless and cache.enabled):
        reason = (
            "no augmentation needs them (flips are kept both ways in any case)"
            if cache.enabled
            else "data.latent_cache.enabled is false"
        )
        yield Problem(
            "data.latent_cache.variants",
            f"data.latent_cache.variants is {cache.variants}, but {reason}; set it to 1.",
        )


def _augmentations(config: RunConfig) -> dict[str, list[AugmentationKind]]:
    """Return the augmentations of every source by the key that says so."""
    found = {"data.augmentations": config.data.augmentations}
    for place, source in enumerate(config.data.sources):
        if source.augmentations is not None:
            found[f"data.sources[{place}].augmentations"] = source.augmentations
    return found


def memory_is_of_one_process(config: RunConfig) -> Iterator[Problem]:
    """Refuse latents in memory where several devices, hence processes, need them."""
    devices = config.trainer.get("devices", 1)
    if config.data.latent_cache.storage is CacheStorage.memory and devices not in (1, "1", [0]):
        yield Problem(
            "data.latent_cache.storage",
            f"data.latent_cache.storage is memory and trainer.devices is {devices}; the memory is "
            "that of one process. Use storage disk, or one device.",
        )


def background_is_a_color(config: RunConfig) -> Iterator[Problem]:
    """Demand a colour."""
    key, color = "data.background", config.data.background
    if not _COLOR.fullmatch(color):
        yield Problem(key, f'{key} is {color!r}; it must be white, black or "#rrggbb".')


def mask_options_have_masks(config: RunConfig) -> Iterator[Problem]:
    """Refuse options of masks that there are none of."""
    data = config.data
    groups = {"data": data} | {f"data.sources[{n}]": own for n, own in enumerate(data.sources)}
    for group, record in groups.items():
        if record.mask_dir is not None and data.masks is not Masks.file:
            yield Problem(
                f"{group}.mask_dir",
                f"{group}.mask_dir is {record.mask_dir}, but data.masks is {data.masks.name}; set "
                "data.masks=file or leave the folder out.",
            )
    if data.mask_floor and data.masks is Masks.none:
        yield Problem(
            "data.mask_floor",
            f"data.mask_floor is {data.mask_floor:g}, but data.masks is none; set data.masks to "
            "alpha or file, or data.mask_floor=0.",
        )


DATA_RULES = (
    bucket_sizes_are_sizes,
    one_way_to_buckets,
    augmentations_agree,
    cached_images_change_little,
    memory_is_of_one_process,
    background_is_a_color,
    mask_options_have_masks,
    resolution_schedule_ascends,
)

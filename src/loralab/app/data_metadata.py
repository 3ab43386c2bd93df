"""What an adapter file says of the data it was trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loralab.app.images import count_shown
from loralab.app.toy_builds import num_devices
from loralab.config.choices import AugmentationKind
from loralab.config.records import RunConfig
from loralab.config.source_records import given_sources
from loralab.data.dataset import Item
from loralab.data.tags import split_tags

if TYPE_CHECKING:
    from loralab.app.preflight import Survey


def data_fields(config: RunConfig, survey: Survey) -> dict[str, Any]:
    """Return what sd-scripts writes about images, buckets and captions."""
    data, captions, validation = config.data, config.data.captions, config.validation
    accumulation = config.trainer.get("accumulate_grad_batches", 1)
    images, class_images = (
        count_shown(survey.items, survey.rotation, is_prior=kind) for kind in (False, True)
    )
    buckets = Counter((item.bucket.width, item.bucket.height) for item in survey.items)
    info = {
        "buckets": {
            str(number): {"resolution": list(size), "count": count}
            for number, (size, count) in enumerate(sorted(buckets.items()))
        },
        "mean_img_ar_error": _mean_ratio_error(survey.items),
    }
    folders, class_folders = (_folders(survey, is_prior=kind) for kind in (False, True))
    training, prior = _named(folders), _named(class_folders)
    tags = {name: entry["tags"] for name, entry in _named({**folders, **class_folders}).items()}
    fields = {
        "ss_num_train_images": images,
        "ss_num_reg_images": class_images,
        "ss_num_validation_images": len(survey.validation_items),
        "ss_validation_seed": validation.seed,
        "ss_validation_split": validation.fraction,
        "ss_validate_every_n_steps": validation.every_n_steps,
        "ss_num_batches_per_epoch": survey.steps_per_epoch * accumulation,
        "ss_batch_size_per_device": data.batch_size,
        "ss_total_batch_size": data.batch_size * accumulation * num_devices(config),
        "ss_resolution": (data.resolution, data.resolution),
        "ss_resize_interpolation": data.resize_filter.name,
        "ss_cache_latents": data.latent_cache.enabled,
        "ss_color_aug": AugmentationKind.color in data.augmentations,
        "ss_flip_aug": data.flip_probability > 0 or AugmentationKind.flip in data.augmentations,
        "ss_random_crop": AugmentationKind.random_crop in data.augmentations,
        "ss_shuffle_caption": captions.shuffle_tags,
        "ss_keep_tokens": captions.keep_tags,
        "ss_caption_dropout_rate": captions.caption_dropout,
        "ss_caption_dropout_every_n_epochs": captions.caption_dropout_every_n_epochs or 0,
        "ss_caption_tag_dropout_rate": captions.tag_dropout,
        "ss_enable_bucket": data.buckets.enabled,
        "ss_bucket_no_upscale": data.buckets.no_upscale,
        "ss_min_bucket_reso": data.buckets.min_side,
        "ss_max_bucket_reso": data.buckets.max_side,
        "ss_bucket_info": json.dumps(info) if data.buckets.enabled else "null",
        "ss_dataset_dirs": json.dumps({name: entry["counts"] for name, entry in training.items()}),
        "ss_reg_dataset_dirs": json.dumps({name: entry["counts"] for name, entry in prior.items()}),
        "ss_tag_frequency": json.dumps(tags),
    }
    if data.sources:
        fields["ss_datasets"] = json.dumps([_dataset(config, survey, fields, tags, info)])
    return fields


def _dataset(
    config: RunConfig, survey: Survey, fields: Mapping[str, Any], tags: Any, buckets: Any
) -> dict[str, Any]:
    """Return what sd-scripts says of one dataset of a configuration file; a run of ours has one."""
    same = (
        "batch_size_per_device", "num_train_images", "num_reg_images", "resolution",
        "enable_bucket", "min_bucket_reso", "max_bucket_reso", "resize_interpolation",
    )  # fmt: skip
    return {
        "is_dreambooth": True,
        **{name: fields[f"ss_{name}"] for name in same},
        "tag_frequency": tags,
        "bucket_info": buckets,
        "subsets": _subsets(config, survey),
    }


def _subsets(config: RunConfig, survey: Survey) -> list[dict[str, Any]]:
    """Return one entry for every folder of every source."""
    texts = {source.image_dir: source.class_text for source in given_sources(config.data).values()}
    found: dict[tuple[int, Path], list[Item]] = {}
    for item in survey.items:
        found.setdefault((id(item.source), item.record.path.parent), []).append(item)
    subsets = []
    for (_, folder), items in found.items():
        source, record = items[0].source, items[0].record
        captions, kinds = source.captions, source.augmentation.kinds
        subsets.append({
            "img_count": len({item.record.path for item in items}),
            "num_repeats": record.repeats,
            "color_aug": "color" in kinds,
            "flip_aug": source.augmentation.flip_probability > 0,
            "random_crop": "random_crop" in kinds,
            "shuffle_caption": captions.shuffle_tags,
            "keep_tokens": captions.keep_tags,
            "keep_tokens_separator": captions.keep_tags_separator,
            "secondary_separator": captions.secondary_separator or None,
            "enable_wildcard": captions.wildcards,
            "caption_prefix": captions.prefix or None,
            "caption_suffix": captions.suffix or None,
            "resize_interpolation": config.data.resize_filter.name,
            "image_dir": folder.name,
            "class_tokens": (
                config.data.prior.class_text if source.is_prior else texts.get(source.name)
            ),
            "is_reg": source.is_prior,
        })  # fmt: skip
    return subsets


def _mean_ratio_error(items: Sequence[Item]) -> float:
    """Return the mean difference of width / height between image and bucket, each image once."""
    errors = {
        item.record.path: abs(
            item.bucket.width / item.bucket.height - item.record.width / item.record.height
        )
        for item in items
    }
    return sum(errors.values()) / len(errors)


def _folders(survey: Survey, *, is_prior: bool) -> dict[Path, dict[str, Any]]:
    """Return repeats, images and tags of every folder; tags count once an image, repeats not."""
    folders: dict[Path, dict[str, Any]] = {}
    seen = set()
    for item in survey.items:
        record = item.record
        if item.source.is_prior is not is_prior or record.path in seen:
            continue
        seen.add(record.path)
        entry = folders.setdefault(record.path.parent, {"counts": None, "tags": Counter()})
        count = 1 if entry["counts"] is None else entry["counts"]["img_count"] + 1
        entry["counts"] = {"n_repeats": record.repeats, "img_count": count}
        caption = record.captions[0] if record.captions else ""
        entry["tags"].update({tag.lower() for tag in split_tags(caption, ",")})
    return folders


def _named(folders: Mapping[Path, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return entries by the folders' names; equal names get ` (2)`, as sd-scripts numbers them."""
    named: dict[str, dict[str, Any]] = {}
    for folder, entry in folders.items():
        name, number = folder.name, 2
        while name in named:
            name, number = f"{folder.name} ({number})", number + 1
        named[name] = entry
    return named

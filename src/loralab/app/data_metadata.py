"""What an adapter file says of the data it was trained on."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from loralab.app.images import count_shown
from loralab.config.choices import AugmentationKind
from loralab.config.records import RunConfig
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
    table = {
        str(number): {"resolution": list(size), "count": count}
        for number, (size, count) in enumerate(sorted(buckets.items()))
    }
    training, prior = _folders(survey, is_prior=False), _folders(survey, is_prior=True)
    return {
        "ss_num_train_images": images,
        "ss_num_reg_images": class_images,
        "ss_num_validation_images": len(survey.validation_items),
        "ss_validation_seed": validation.seed,
        "ss_validation_split": validation.fraction,
        "ss_validate_every_n_steps": validation.every_n_steps,
        "ss_num_batches_per_epoch": survey.steps_per_epoch * accumulation,
        "ss_batch_size_per_device": data.batch_size,
        "ss_total_batch_size": data.batch_size * accumulation,
        "ss_resolution": (data.resolution, data.resolution),
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
        "ss_bucket_info": json.dumps({"buckets": table}) if data.buckets.enabled else "null",
        "ss_dataset_dirs": json.dumps({name: entry["counts"] for name, entry in training.items()}),
        "ss_reg_dataset_dirs": json.dumps({name: entry["counts"] for name, entry in prior.items()}),
        "ss_tag_frequency": json.dumps(
            {name: entry["tags"] for name, entry in {**training, **prior}.items()}
        ),
    }


def _folders(survey: Survey, *, is_prior: bool) -> dict[str, dict[str, Any]]:
    """Return repeats, images and tags of every folder; tags count once an image, repeats not."""
    folders: dict[str, dict[str, Any]] = {}
    seen = set()
    for item in survey.items:
        record = item.record
        if item.source.is_prior is not is_prior or record.path in seen:
            continue
        seen.add(record.path)
        entry = folders.setdefault(record.path.parent.name, {"counts": None, "tags": Counter()})
        count = 1 if entry["counts"] is None else entry["counts"]["img_count"] + 1
        entry["counts"] = {"n_repeats": record.repeats, "img_count": count}
        caption = record.captions[0] if record.captions else ""
        entry["tags"].update({tag.lower() for tag in split_tags(caption, ",")})
    return folders

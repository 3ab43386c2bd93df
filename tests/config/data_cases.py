"""Broken and fine values for the rules of images and their cache, as `test_rules` wants."""

from __future__ import annotations

from typing import Any

from loralab.config.choices import AugmentationKind, CacheStorage, Masks

FLIP = AugmentationKind.flip
CROP, JITTER = AugmentationKind.random_crop, AugmentationKind.crop_jitter
UNCACHED = {"data.latent_cache.enabled": False}

DATA_CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    (
        "bucket_sizes_are_sizes",
        {"data.buckets.sizes": ["832 by 1216"]},
        "data.buckets.sizes",
        {"data.buckets.sizes": ["832x1216", "1216x832"]},
    ),
    (
        "bucket_sizes_are_sizes",
        {"data.buckets.sizes": ["512x510"]},
        "data.buckets.sizes",
        {"data.buckets.sizes": ["512x512"]},
    ),
    (
        "resolution_schedule_ascends",
        {"data.resolution_schedule": ["0:512", "half:512"]},
        "data.resolution_schedule",
        {"data.resolution_schedule": ["0:256", "0.5:512"]},
    ),
    (
        "resolution_schedule_ascends",
        {"data.resolution_schedule": ["0:250"]},
        "data.resolution_schedule",
        {"data.resolution_schedule": ["0:256"]},
    ),
    (
        "resolution_schedule_ascends",
        {"data.resolution_schedule": ["0.5:256", "0:512"]},
        "data.resolution_schedule",
        {"data.resolution_schedule": ["0:256"]},
    ),
    (
        "one_way_to_buckets",
        {"data.buckets.enabled": False, "data.buckets.no_upscale": True},
        "data.buckets.no_upscale",
        {"data.buckets.no_upscale": True},
    ),
    (
        "one_way_to_buckets",
        {"data.buckets.sizes": ["512x512"], "data.buckets.no_upscale": True},
        "data.buckets.sizes",
        {"data.buckets.sizes": ["512x512"]},
    ),
    (
        "augmentations_agree",
        {"data.augmentations": [FLIP], "data.flip_probability": 0.3},
        "data.augmentations",
        {"data.augmentations": [FLIP]},
    ),
    (
        "augmentations_agree",
        {**UNCACHED, "data.augmentations": [CROP, JITTER]},
        "data.augmentations",
        {**UNCACHED, "data.augmentations": [CROP, FLIP]},
    ),
    (
        "augmentations_agree",
        {"data.augmentations": [FLIP, FLIP]},
        "data.augmentations",
        {"data.augmentations": [FLIP]},
    ),
    (
        "cached_images_change_little",
        {"data.augmentations": [CROP]},
        "data.augmentations",
        {"data.augmentations": [CROP], "data.latent_cache.variants": 4},
    ),
    (
        "cached_images_change_little",
        {"data.latent_cache.variants": 4, "data.augmentations": [FLIP]},
        "data.latent_cache.variants",
        {"data.latent_cache.variants": 4, "data.augmentations": [JITTER]},
    ),
    (
        "memory_is_of_one_process",
        {"data.latent_cache.storage": CacheStorage.memory, "trainer.devices": 2},
        "data.latent_cache.storage",
        {"data.latent_cache.storage": CacheStorage.memory, "trainer.devices": 1},
    ),
    (
        "background_is_a_color",
        {"data.background": "#12345"},
        "data.background",
        {"data.background": "#12345f"},
    ),
    (
        "mask_options_have_masks",
        {"data.mask_dir": "masks", "data.masks": Masks.alpha},
        "data.mask_dir",
        {"data.mask_dir": "masks", "data.masks": Masks.file},
    ),
    (
        "mask_options_have_masks",
        {"data.mask_floor": 0.1},
        "data.mask_floor",
        {"data.mask_floor": 0.1, "data.masks": Masks.alpha},
    ),
]

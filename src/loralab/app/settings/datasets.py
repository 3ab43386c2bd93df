"""A dataset TOML of sd-scripts -> sources of images.

Its options are looked for in the subset, then its dataset, then the general section.
"""

from __future__ import annotations

from typing import Any

from loralab.app.settings.original import Original, Verdict
from loralab.app.settings.plan import Plan
from loralab.config.parse import nearest

DATASET = ("batch_size", "resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso",
           "bucket_reso_steps", "bucket_no_upscale", "network_multiplier", "validation_split",
           "validation_seed", "resize_interpolation")  # fmt: skip
CAPTIONS = {
    "shuffle_caption": "shuffle_tags", "caption_separator": "separator", "keep_tokens": "keep_tags",
    "keep_tokens_separator": "keep_tags_separator", "secondary_separator": "secondary_separator",
    "enable_wildcard": "wildcards", "caption_prefix": "prefix", "caption_suffix": "suffix",
    "caption_dropout_rate": "caption_dropout", "caption_tag_dropout_rate": "tag_dropout",
    "caption_dropout_every_n_epochs": "caption_dropout_every_n_epochs",
    "token_warmup_min": "tag_warmup_min", "token_warmup_step": "tag_warmup_steps",
}  # fmt: skip
AUGMENTATIONS = {"flip_aug": "flip", "random_crop": "random_crop", "color_aug": "color"}
SUBSET = (*CAPTIONS, *AUGMENTATIONS, "num_repeats", "image_dir", "metadata_file", "is_reg",
          "class_tokens", "caption_extension", "cache_info", "alpha_mask", "face_crop_aug_range",
          "conditioning_data_dir", "custom_attributes", "resize_interpolation")  # fmt: skip
HUB = {
    "batch_size": "batch_size",
    "resolution": "train_resolution",
    "enable_bucket": "buckets",
    "min_bucket_reso": "min_bucket_resolution",
    "max_bucket_reso": "max_bucket_resolution",
}
_IDLE = ("cache_info", "network_multiplier")


def merge_datasets(original: Original) -> None:
    """Make dataset options settings of the file, and tell what one run cannot have twice."""
    general, *datasets = original.datasets
    for place, dataset in enumerate(datasets):
        where = f"datasets[{place}]"
        _unknown(original, dataset, (*DATASET, *SUBSET, "subsets"), where)
        for number, subset in enumerate(dataset.get("subsets", [])):
            _unknown(original, subset, SUBSET, f"{where}.subsets[{number}]")
    _unknown(original, general, (*DATASET, *SUBSET), "general")
    first = {**general, **(datasets[0] if datasets else {})}
    for name in DATASET:
        values = [{**general, **dataset}.get(name) for dataset in datasets]
        if any(value != values[0] for value in values):
            text = f"differs between datasets ({values}); that of the first is taken for all."
            original.note(Verdict.no_equivalent, name, text)
        if (value := first.get(name)) is not None and name not in _IDLE:
            hub = HUB.get(name, name)
            text = ",".join(map(str, value)) if isinstance(value, list) else value
            original.values[hub] = text
            original.given.add(hub)


def put_sources(plan: Plan, original: Original) -> None:
    """Put every subset as a source, and the regularisation subset as class images."""
    general, *datasets = original.datasets
    sources: list[dict[str, Any]] = []
    for dataset in datasets:
        above = {**general, **dataset}
        for subset in dataset.get("subsets", []):
            options = {**above, **subset}
            if options.get("is_reg"):
                _put_prior(plan, options)
            else:
                sources.append(_source(plan, options))
    if sources:
        plan.put("data.image_dir", None, "datasets")
        plan.put("data.sources", sources, "datasets")


def _source(plan: Plan, options: dict[str, Any]) -> dict[str, Any]:
    source: dict[str, Any] = {"image_dir": options.get("image_dir")}
    if file := options.get("metadata_file"):
        source |= {"layout": "metadata", "metadata_file": str(file)}
    repeats = int(options.get("num_repeats", 1))
    source["repeats"] = max(1, repeats)
    if text := options.get("class_tokens"):
        source["class_text"] = text
    extension = str(options.get("caption_extension", plan.settings.get("caption_extension")))
    source["caption_extension"] = "." + extension.lstrip(".")
    captions = {ours: options[name] for name, ours in CAPTIONS.items() if name in options}
    if captions:
        source["captions"] = captions
    changes = [ours for name, ours in AUGMENTATIONS.items() if options.get(name)]
    source["augmentations"] = changes
    if plan.values.get("data.latent_cache.enabled") and set(changes) - {"flip"}:
        plan.put("data.latent_cache.enabled", False, "cache_latents")
    if (options.get("custom_attributes") or {}).get("diff_output_preservation"):
        plan.put("objective.preservation", "output", "custom_attributes")
    return source


def _put_prior(plan: Plan, options: dict[str, Any]) -> None:
    if plan.values.get("data.prior.image_dir"):
        plan.given.add("is_reg")
        plan.note(Verdict.no_equivalent, "is_reg", f"{options.get('image_dir')} is a second folder "
                  "of class images; a run has one.")  # fmt: skip
        return
    plan.put("data.prior.image_dir", options.get("image_dir"), "datasets")
    plan.put("data.prior.layout", "folder", "datasets")
    plan.put("data.prior.class_text", options.get("class_tokens"), "datasets")


def _unknown(original: Original, table: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in table:
        if name not in known:
            original.note(Verdict.mistake, f"{where}.{name}", f"is no option there. "
                          f"{nearest(name, known)}")  # fmt: skip

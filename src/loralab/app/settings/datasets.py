"""A dataset TOML of sd-scripts -> sources of images.

Its options are looked for in the subset, then its dataset, then the general section.
"""

from __future__ import annotations

from typing import Any

from loralab.app.settings.original import Original, Verdict
from loralab.app.settings.plan import OFF, Plan
from loralab.app.settings.reading import typed
from loralab.app.settings.vocabulary import option_names
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
PLACES = {"image_dir": "image_dir", "metadata_file": "metadata_file", "class_tokens": "class_text",
          "num_repeats": "repeats", "conditioning_data_dir": "mask_dir"}  # fmt: skip
SUBSET = (*CAPTIONS, *AUGMENTATIONS, *PLACES, "is_reg", "caption_extension", "cache_info",
          "alpha_mask", "face_crop_aug_range", "custom_attributes",
          "resize_interpolation")  # fmt: skip
_IDLE = ("cache_info", "network_multiplier")
_OF_CLASS_IMAGES = ("image_dir", "class_tokens", "caption_extension")
_TYPES = {
    "is_reg": "cache_latents",
    "cache_info": "cache_latents",
    "alpha_mask": "cache_latents",
    "num_repeats": "batch_size",
    "network_multiplier": "learning_rate",
}  # of the same type


def merge_datasets(original: Original) -> None:
    """Make dataset options settings of the file, and tell what one run cannot have twice."""
    general, *datasets = original.datasets
    _check(original, general, (*DATASET, *SUBSET), "general.")
    for place, dataset in enumerate(datasets):
        where = f"datasets[{place}]."
        subsets = dataset.get("subsets", [])
        if not isinstance(subsets, list) or any(not isinstance(table, dict) for table in subsets):
            original.note(Verdict.mistake, f"{where}subsets", "is no list of tables; write "
                          "[[datasets.subsets]].")  # fmt: skip
            dataset["subsets"] = subsets = []
        _check(original, dataset, (*DATASET, *SUBSET, "subsets"), where)
        for number, subset in enumerate(subsets):
            _check(original, subset, SUBSET, f"{where}subsets[{number}].")
    first = {**general, **(datasets[0] if datasets else {})}
    for name in DATASET:
        values = [{**general, **dataset}.get(name) for dataset in datasets]
        if any(value != values[0] for value in values):
            text = f"differs between datasets ({values}); that of the first is taken for all."
            original.note(Verdict.no_equivalent, name, text)
        if (value := first.get(name)) is not None and name not in _IDLE:
            setting = _setting(name)
            original.values[setting] = value
            original.given.add(setting)


def _setting(option: str) -> str:
    return "batch_size" if option == "batch_size" else option_names().get(option, option)


def _check(original: Original, table: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    """Give every option of a table its type; take out what is none, or of another type."""
    for name in [name for name in table if name != "subsets"]:
        told = f"{where}{name}"
        if name not in known:
            original.note(Verdict.mistake, told, f"is no option there. {nearest(name, known)}")
            del table[name]
            continue
        original.words[told] = _setting(name) if name in DATASET else "datasets"
        if name != "custom_attributes":
            value = typed(original, _setting(_TYPES.get(name, name)), table[name], told=told)
            if value is None:
                del table[name]
            else:
                table[name] = value


def put_sources(plan: Plan, original: Original) -> None:
    """Put every subset as a source, and the regularisation subset as class images."""
    general, *datasets = original.datasets
    sources: list[dict[str, Any]] = []
    for place, dataset in enumerate(datasets):
        for number, subset in enumerate(dataset.get("subsets", [])):
            options, where = (
                {**general, **dataset, **subset},
                f"datasets[{place}].subsets[{number}]",
            )
            if options.get("is_reg"):
                _put_prior(plan, options, where)
            else:
                sources.append(_source(plan, options, where))
    if sources:
        plan.put("data.image_dir", None, "datasets")
        plan.put("data.layout", "folder", "datasets")
        plan.put("data.sources", sources, "datasets")


def _source(plan: Plan, options: dict[str, Any], where: str) -> dict[str, Any]:
    source = {ours: options[name] for name, ours in PLACES.items() if name in options}
    if "metadata_file" in source:
        source["layout"] = "metadata"
    if source.get("repeats", 1) < 1:
        _tell(plan, Verdict.mistake, f"{where}.num_repeats", f"is {source['repeats']}, with which "
              "sd-scripts skips the subset; once is taken here.")  # fmt: skip
        source["repeats"] = 1
    source["caption_extension"] = _extension(plan, options)
    captions = {ours: options[name] for name, ours in CAPTIONS.items() if name in options}
    if captions:
        source["captions"] = captions
    source["augmentations"] = [ours for name, ours in AUGMENTATIONS.items() if options.get(name)]
    if plan.values.get("data.latent_cache.enabled") and set(source["augmentations"]) - {"flip"}:
        plan.put("data.latent_cache.enabled", False, "cache_latents")
    if options.get("conditioning_data_dir"):
        plan.put("data.masks", "file", "datasets")
    elif options.get("alpha_mask"):
        plan.put("data.masks", "alpha", "datasets")
    _tell_the_rest(plan, options, where)
    return source


def _extension(plan: Plan, options: dict[str, Any]) -> str:
    given = str(options.get("caption_extension", plan.settings.get("caption_extension")))
    return "." + given.lstrip(".")


def _tell_the_rest(plan: Plan, options: dict[str, Any], where: str) -> None:
    attributes = options.get("custom_attributes") or {}
    if isinstance(attributes, dict) and attributes.get("diff_output_preservation"):
        plan.put("objective.preservation", "output", "datasets")
        _tell(plan, Verdict.mapped, f"{where}.custom_attributes", "is "
              "objective.preservation=output here, for all images.")  # fmt: skip
    elif attributes:
        _tell(plan, Verdict.no_equivalent, f"{where}.custom_attributes", "has no meaning here.")
    if options.get("face_crop_aug_range"):
        _tell(plan, Verdict.no_equivalent, f"{where}.face_crop_aug_range", "crops follow no faces; "
              "data.augmentations=[crop_jitter] is near.")  # fmt: skip


def _put_prior(plan: Plan, options: dict[str, Any], where: str) -> None:
    if plan.values.get("data.prior.image_dir"):
        _tell(plan, Verdict.no_equivalent, f"{where}.is_reg", f"{options.get('image_dir')} is a "
              "second folder of class images; a run has one.")  # fmt: skip
        return
    plan.put("data.prior.image_dir", options.get("image_dir"), "datasets")
    plan.put("data.prior.layout", "folder", "datasets")
    plan.put("data.prior.class_text", options.get("class_tokens"), "datasets")
    plan.put("data.prior.caption_extension", _extension(plan, options), "datasets")
    for name in SUBSET:
        if name in (*_OF_CLASS_IMAGES, "is_reg", "num_repeats") or options.get(name) in OFF:
            continue
        _tell(plan, Verdict.no_equivalent, f"{where}.{name}", "class images are shown as "
              "data.captions and data.augmentations say.")  # fmt: skip
    if options.get("num_repeats", 1) > 1:
        _tell(plan, Verdict.no_equivalent, f"{where}.num_repeats", "an epoch shows as many class "
              "images as training images in any case.")  # fmt: skip


def _tell(plan: Plan, verdict: Verdict, name: str, text: str) -> None:
    plan.given.add(name)
    plan.note(verdict, name, text)

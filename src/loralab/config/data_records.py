"""Configuration of the training images."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from loralab.config.choices import (
    AugmentationKind,
    BucketMatch,
    CacheStorage,
    FilePrecision,
    Masks,
    OnBadImage,
    Posterior,
    ResizeFilter,
    SourceLayout,
    TagOrder,
    TagRule,
)
from loralab.config.option import option
from loralab.config.source_records import ImageFilterRecord, PriorRecord, SourceRecord


@dataclass(kw_only=True)
class BucketRecord:
    """Aspect-ratio buckets: images keep their shape, every bucket has about the same area."""

    enabled: bool = option(True, "Sort images by aspect ratio; false crops all to the square.")
    step: int = option(64, "Sides of buckets are multiples of this, in px.", low=8)
    min_side: int = option(256, "Shortest side of a bucket, in px.", low=8)
    max_side: int = option(1024, "Longest side of a bucket, in px.", low=8)
    match: BucketMatch = option(
        BucketMatch.log_ratio,
        "How the nearest shape is found: log_ratio treats portrait and landscape alike, ratio is "
        "the rule of sd-scripts.",
    )
    no_upscale: bool = option(
        False, "Never enlarge: each image is cut to a bucket of its own; limits of sides are idle."
    )
    sizes: list[str] = option(
        list, "Buckets as WIDTHxHEIGHT in px, like [832x1216], in place of a computed list."
    )


@dataclass(kw_only=True)
class CaptionRecord:
    """What happens to a caption before the text encoder sees it."""

    prefix: str = option("", "Text put before every caption.")
    suffix: str = option("", "Text put after every caption.")
    multi_line: bool = option(
        False, "Choose a line of the caption file anew each time; false takes the first."
    )
    wildcards: bool = option(False, "Replace {a|b} in captions by one of its parts each time.")
    separator: str = option(",", "What stands between tags.")
    secondary_separator: str = option(
        "", "What stands between tags that are shuffled and dropped as one; empty is off."
    )
    shuffle_tags: bool = option(False, "Shuffle the tags anew each time an image is seen.")
    keep_tags: int = option(0, "Leading tags that are never shuffled or dropped.", low=0)
    keep_tags_separator: str = option(
        "", "Mark after the tags to keep, and before those to keep at the end; empty is off."
    )
    tag_rule: TagRule = option(
        TagRule.clean,
        "clean drops empty tags and takes marks out of every text; sd_scripts leaves both.",
    )
    tag_top_k: int | None = option(None, "Use the most frequent tags only, so many.", low=1)
    tag_min_count: int = option(1, "Use only tags that so many captions have.", low=1)
    tag_warmup_steps: int = option(
        0, "Steps over which the tags come in, the first ones first.", low=0
    )
    tag_warmup_min: int = option(1, "Tags at the first of these steps, beside those kept.", low=0)
    tag_dropout: float = option(0.0, "Probability of dropping each other tag.", low=0.0, high=1.0)
    caption_dropout: float = option(
        0.0, "Probability of training an image with an empty caption.", low=0.0, high=1.0
    )
    caption_dropout_every_n_epochs: int | None = option(
        None, "Train every so many epochs, whole, with empty captions.", low=1
    )
    tag_balance: float = option(
        0.0, "Loss weight by rarity of tags: 0 none, 1 the inverse of counts.", low=0.0, high=1.0
    )
    tag_balance_limit: float = option(4.0, "Largest of these weights; 1 / it the least.", low=1.0)
    tag_occurrence_file: bool = option(
        False, "Write how often tags occur to tags.txt in the run folder.", affects_result=False
    )
    tag_occurrence_order: TagOrder = option(
        TagOrder.count, "Order of that file.", affects_result=False
    )


@dataclass(kw_only=True)
class LatentCacheRecord:
    """Latents are encoded once and kept on disk; runs and sweeps share them."""

    enabled: bool = option(True, "Encode images once; false encodes them at every step.")
    directory: str = option(MISSING, "Folder of the cache.", affects_result=False)
    storage: CacheStorage = option(
        CacheStorage.disk,
        "Keep latents on disk, or in memory for this run alone.",
        affects_result=False,
    )
    precision: FilePrecision = option(
        FilePrecision.fp32, "Number format of cached latents; half precision halves their size."
    )
    posterior: Posterior = option(
        Posterior.resample,
        "Draw latents from the VAE's posterior at each visit, or once for each image.",
    )
    variants: int = option(
        1, "Random crops and colors of each image that are kept; each visit takes one.", low=1
    )
    size_limit: float | None = option(
        None, "Largest size of the cache, in GB; null sets none.", low=0.0, affects_result=False
    )


@dataclass(kw_only=True)
class DataRecord:
    """The training images."""

    image_dir: str | None = option(MISSING, "Folder of images; the short form of one source.")
    layout: SourceLayout = option(
        SourceLayout.folder,
        "How a folder lists its images: all files in it; folders named like 10_dog by repeats and "
        "class text, as sd-scripts reads them; or a metadata file.",
    )
    metadata_file: str | None = option(
        None,
        "Metadata file of that layout, in the folder: .jsonl, .csv, .parquet, or the .json of "
        "sd-scripts; null looks for one called metadata.",
    )
    caption_column: str = option("text", "Column of the captions in metadata files.")
    caption_extension: str = option(".txt", "Ending of caption files.")
    class_text: str | None = option(
        None, "Caption of images without a caption file; null demands a file for each."
    )
    repeats: int = option(1, "How often an epoch shows each image.", low=1)
    sources: list[SourceRecord] = option(
        list, "Several folders of images, each with options of its own, in place of image_dir."
    )
    on_bad_image: OnBadImage = option(
        OnBadImage.stop, "What becomes of unusable images: the run is refused, or goes on without."
    )
    shuffle_data: bool = option(True, "Show images in another order in each epoch.")
    resolution: int = option(512, "Training area as the side of a square, in px.", low=8)
    resolution_schedule: list[str] = option(
        list,
        "Sizes of earlier epochs as SHARE:SIDE, like [0:384, 0.5:512]: from this share of the "
        "training on; empty trains at resolution throughout.",
    )
    batch_size: int = option(1, "Images in one forward pass, per device.", low=1)
    num_workers: int = option(
        0, "Processes that load images; 0 loads in the main one.", low=0, affects_result=False
    )
    persistent_workers: bool = option(
        True, "Keep these processes from epoch to epoch.", affects_result=False
    )
    prefetch_factor: int = option(
        2, "Micro-batches that each of them loads ahead.", low=1, affects_result=False
    )
    flip_probability: float = option(
        0.0, "Probability of mirroring an image left to right.", low=0.0, high=1.0
    )
    augmentations: list[AugmentationKind] = option(
        list,
        "Random changes at each visit: flip mirrors half of them, random_crop cuts anywhere, "
        "crop_jitter near the centre, color shifts hue or gamma of a third.",
    )
    background: str = option("white", "What transparency is laid over: white, black or #rrggbb.")
    resize_filter: ResizeFilter = option(
        ResizeFilter.lanczos, "How images are scaled; area takes means, as sd-scripts does."
    )
    masks: Masks = option(
        Masks.none,
        "Weights of image parts in the loss: the alpha channel, or grey NAME.mask.png files.",
    )
    mask_dir: str | None = option(None, "Folder of the mask files; null looks beside the images.")
    mask_floor: float = option(0.0, "Least weight, where a mask is black.", low=0.0, high=1.0)
    buckets: BucketRecord = option(BucketRecord, "Aspect-ratio buckets.")
    captions: CaptionRecord = option(CaptionRecord, "Caption handling.")
    latent_cache: LatentCacheRecord = option(LatentCacheRecord, "Latent cache.")
    prior: PriorRecord = option(PriorRecord, "Class images.")
    image_filter: ImageFilterRecord = option(ImageFilterRecord, "Limits of image sizes.")

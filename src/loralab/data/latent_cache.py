"""VAE moments, encoded once and addressed by content.

The key names everything that the moments depend on, so a changed image, crop, filter or VAE is
another key and old moments are never taken for new ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import ImageColor
from torch import Tensor

from loralab.data.augment import PLAIN, Variant
from loralab.data.batch import fits
from loralab.data.cache_folder import cache_files
from loralab.data.crop import CropPlan
from loralab.data.images import PixelOptions
from loralab.data.moment_store import FORMAT_VERSION, FileStore, MemoryStore, Store, bucket_of
from loralab.errors import DataError, Problem

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
HEADER_BYTES = 300  # of a file, beside its numbers; an estimate


class LatentCache:
    """VAE moments of images as one VAE encodes them."""

    def __init__(
        self,
        root: Path | None,
        *,
        vae_digest: str,
        vae_dtype: str = "fp32",
        precision: str = "fp32",
    ) -> None:
        """Keep place and identity.

        Args:
            root: Folder that runs share, made on the first write; None keeps moments in memory.
            vae_digest: Identity of the VAE: its weights and its config.
            vae_dtype: Number format that it computes in.
            precision: Number format that moments are kept in, a key of ``DTYPES``.
        """
        self.root = root
        self.vae_digest = vae_digest
        self.vae_dtype = vae_dtype
        self.precision = precision
        self.faults: dict[str, Problem] = {}  # why images have no moments, by key
        self.store: Store = MemoryStore() if root is None else FileStore(root)

    def key(
        self,
        digest: str,
        plan: CropPlan,
        variant: Variant = PLAIN,
        *,
        pixels: PixelOptions | None = None,
    ) -> str:
        """Return the name of the moments of one image: a fingerprint and the bucket, ``…-HxW``.

        Args:
            digest: Hash of the image file's bytes.
            plan: Where it is scaled and cut.
            variant: What is changed about it.
            pixels: How the file becomes pixels.
        """
        pixels = pixels or PixelOptions()
        facts = {
            "format": FORMAT_VERSION,
            "vae": (self.vae_digest, self.vae_dtype),
            "precision": self.precision,
            "image": digest,
            "background": ImageColor.getrgb(pixels.background),
            "filter": pixels.resize_filter,
            "resized": plan.resized,
            "cut": plan.cut(variant),
            "bucket": (plan.bucket.height, plan.bucket.width),
            "flipped": variant.flipped,
            "color": variant.color and asdict(variant.color),
        }
        fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]
        return f"{fingerprint}-{plan.bucket.height}x{plan.bucket.width}"

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys to be written, each once: not there, or not whole.

        Raises:
            DataError: If the folder cannot be read.
        """
        return [key for key in dict.fromkeys(keys) if not self.store.holds(key)]

    def read(self, key: str) -> Tensor:
        """Return the moments of a key, shape (2C, h, w) float32: mean, then log-variance.

        Raises:
            DataError: If the file is missing, damaged or unreadable, with the image's own fault
                where this process knows of one.
        """
        if key in self.faults:
            raise DataError(self.faults[key])
        return self.store.read(key).float()

    def write(self, key: str, moments: Tensor, *, source: Path | None = None) -> None:
        """Keep moments, shape (2C, h, w).

        Args:
            key: What ``key`` returned.
            moments: Mean and log-variance, finite.
            source: The image, to be named in messages.

        Raises:
            DataError: If a value is not finite or the file cannot be written.
        """
        assert moments.ndim == 3, moments.shape
        assert moments.shape[0] % 2 == 0, moments.shape
        assert fits(moments.shape[1:], bucket_of(key)), (moments.shape, key)
        moments = moments.detach().to("cpu", DTYPES[self.precision]).contiguous()
        if not moments.isfinite().all():
            name = str(source or key)
            sentence = (
                f"{name} is encoded to values that are not finite in {self.precision}; take it "
                "out, or check the VAE's weights."
            )
            raise DataError(Problem(name, sentence))
        self.store.write(key, moments)

    def bytes_needed(self, keys: Iterable[str], *, channels: int, factor: int) -> int:
        """Return how many bytes the missing ones of these keys will take, to about a percent.

        Args:
            keys: Everything that a run will ask for.
            channels: Channels of a latent, C.
            factor: Pixels that one latent cell covers, along a side.
        """
        sizes = [bucket_of(key) for key in self.missing(keys)]
        cells = sum((height // factor) * (width // factor) for height, width in sizes)
        return 2 * channels * cells * DTYPES[self.precision].itemsize + HEADER_BYTES * len(sizes)

    def bytes_used(self) -> int:
        """Return how many bytes the files of the cache take, whatever run wrote them."""
        return sum(file.size for file in cache_files(self.root)) if self.root else 0

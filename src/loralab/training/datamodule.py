"""Items -> latent cache -> loaders. Preflight has scanned and bucketed the images already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lightning.pytorch as L
import torch

from loralab.data.captions import CaptionPipeline
from loralab.data.dataset import BucketedDataset, CacheEntry, Item, ValidationDataset, read_pixels
from loralab.data.latent_cache import LatentCache
from loralab.data.sampler import BucketBatchSampler
from loralab.models.codec import LatentCodec
from loralab.training.loader import ResumableLoader


@dataclass(frozen=True)
class LoaderOptions:
    """How images become micro-batches.

    Attributes:
        batch_size: Images in a micro-batch, per device.
        accumulation: Micro-batches each rank adds up for one step.
        num_workers: Processes that load; 0 loads in the main one.
    """

    batch_size: int
    accumulation: int = 1
    num_workers: int = 0


class ImageTextDataModule(L.LightningDataModule):
    """Training and validation loaders over bucketed images with captions."""

    def __init__(
        self,
        items: Sequence[Item],
        validation_items: Sequence[Item],
        *,
        captions: CaptionPipeline,
        cache: LatentCache | None,
        load_codec: Callable[[], LatentCodec],
        loading: LoaderOptions,
        flip_probability: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Keep the parts.

        Args:
            items: Training items, repeats expanded.
            validation_items: Held-out items; may be empty.
            captions: What happens to captions.
            cache: Latent cache, or None to encode at every step.
            load_codec: Loads the VAE; called only when the cache lacks something.
            loading: Batch size, accumulation and workers.
            flip_probability: Probability of mirroring a training image.
            seed: Seed of the epoch plan and of the samples.
        """
        super().__init__()
        self.train_set = BucketedDataset(
            items, captions=captions, cache=cache, seed=seed, flip_probability=flip_probability
        )
        self.validation_set = ValidationDataset(validation_items, captions=captions, cache=cache)
        self.cache = cache
        self.load_codec = load_codec
        self.loading = loading
        self.seed = seed
        self._prepared = False
        self.report: Callable[[int, int], None] = lambda done, total: None

    def prepare_data(self) -> None:
        """Encode what the latent cache lacks; Lightning calls this on one process only."""
        if self.cache is None or self._prepared:
            return
        self._prepared = True
        entries = [*self.train_set.required(), *self.validation_set.required()]
        lacking = set(self.cache.missing(entry.key for entry in entries))
        unique = {entry.key: entry for entry in entries}.values()
        todo = [entry for entry in unique if entry.key in lacking]
        self.report(0, len(todo))
        if not todo:
            return
        codec = self.load_codec().to("cuda" if torch.cuda.is_available() else "cpu")
        for done, entry in enumerate(todo, 1):
            self._encode(codec, entry)
            self.report(done, len(todo))

    def train_dataloader(self) -> ResumableLoader:
        """Return the loader of the epoch plan."""
        return self._loader(self.train_set, shuffle=True, accumulation=self.loading.accumulation)

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        """Return the loader of the held-out images, or nothing."""
        if not self.validation_set.items:
            return []
        return self._loader(self.validation_set, shuffle=False, accumulation=1)

    def _loader(
        self, dataset: BucketedDataset | ValidationDataset, *, shuffle: bool, accumulation: int
    ) -> ResumableLoader:
        sampler = BucketBatchSampler(
            [item.bucket for item in dataset.items],
            [item.record.weight for item in dataset.items],
            batch_size=self.loading.batch_size,
            accumulation=accumulation,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            shuffle=shuffle,
        )
        return ResumableLoader(dataset, sampler, num_workers=self.loading.num_workers)

    def _encode(self, codec: LatentCodec, entry: CacheEntry) -> None:
        assert self.cache is not None
        pixels = read_pixels(entry.item, flipped=entry.flipped)
        device = next(codec.parameters()).device
        with torch.inference_mode():
            moments = codec.moments(pixels[None].to(device))[0]
        self.cache.write(entry.key, moments.cpu(), source=entry.item.record.path)

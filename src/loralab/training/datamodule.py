"""Items -> latent cache -> loaders. Preflight has scanned and bucketed the images already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lightning.pytorch as L
import torch

from loralab.data.dataset import BucketedDataset, Item, ValidationDataset
from loralab.data.latent_cache import LatentCache
from loralab.data.prior import Rotation
from loralab.data.resolution import Phase
from loralab.data.sampler import BucketBatchSampler
from loralab.errors import DataError, Problem
from loralab.models.codec import LatentCodec
from loralab.training.cache_filling import fill_cache
from loralab.training.loader import ResumableLoader


@dataclass(frozen=True)
class LoaderOptions:
    """How images become micro-batches.

    Attributes:
        batch_size: Images in a micro-batch, per device.
        accumulation: Micro-batches each rank adds up for one step.
        num_workers: Processes that load; 0 loads in the main one.
        persistent_workers: Keep these processes from epoch to epoch.
        prefetch_factor: Micro-batches that each of them loads ahead.
        shuffle: Show training images in another order in each epoch.
        skips_bad: Let another image of weight 0 stand in for one that cannot be read.
        by_count: Divide losses by counts, not by weights; `epoch_plan` says how.
    """

    batch_size: int
    accumulation: int = 1
    num_workers: int = 0
    persistent_workers: bool = True
    prefetch_factor: int = 2
    shuffle: bool = True
    skips_bad: bool = False
    by_count: bool = False


class ImageTextDataModule(L.LightningDataModule):
    """Training and validation loaders over bucketed images with captions."""

    def __init__(
        self,
        items: Sequence[Item],
        validation_items: Sequence[Item],
        probe_items: Sequence[Item] = (),
        *,
        cache: LatentCache | None,
        load_codec: Callable[[], LatentCodec],
        loading: LoaderOptions,
        num_variants: int = 1,
        seed: int = 0,
        rotation: Rotation | None = None,
        phases: Sequence[Phase] = (),
    ) -> None:
        """Keep the parts.

        Args:
            items: Training items, repeats expanded.
            validation_items: Held-out items; may be empty.
            probe_items: Training items that validation watches as well; may be empty.
            cache: Latent cache, or None to encode at every step.
            load_codec: Loads the VAE; called only when the cache lacks something.
            loading: Batch size, accumulation and workers.
            num_variants: Variants of an image that the cache holds where there is no end of them.
            seed: Seed of the epoch plan and of the samples.
            rotation: Class images that take turns from epoch to epoch.
            phases: Sizes of training epochs other than the items' own, in order.
        """
        super().__init__()
        self.train_set = BucketedDataset(
            items,
            cache=cache,
            seed=seed,
            num_variants=num_variants,
            skips_bad=loading.skips_bad,
            phases=phases,
        )
        self.validation_set, self.probe_set = (
            ValidationDataset(group, cache=cache) for group in (validation_items, probe_items)
        )
        self.cache = cache
        self.load_codec = load_codec
        self.loading = loading
        self.seed = seed
        self.rotation = rotation
        self._prepared = False
        self.left_out: dict[int, Problem] = {}  # held-out images that cannot be measured, by place
        self.report: Callable[[int, int], None] = lambda done, total: None

    def prepare_data(self) -> None:
        """Encode what the latent cache lacks; Lightning calls this on one process only."""
        if self.cache is None or self._prepared:
            return
        self._prepared = True
        sets = (self.train_set, self.validation_set, self.probe_set)
        fill_cache(
            self.cache,
            [entry for images in sets for entry in images.required()],
            self._codec_on_its_device,
            num_workers=self.loading.num_workers,
            skips_bad=self.loading.skips_bad,
            report=self.report,
        )

    def setup(self, stage: str) -> None:
        """Leave measured images out that cannot be read, on every rank alike.

        Raises:
            DataError: If no held-out image is left.
        """
        if not self.loading.skips_bad or self.left_out:
            return
        self.left_out, _ = map(_leave_out_bad, (self.validation_set, self.probe_set))
        if self.left_out and not self.validation_set.items:
            first = next(iter(self.left_out.values()))
            sentence = (
                f"None of the {len(self.left_out)} held-out images can be measured; hold out other "
                f"ones with validation.folder or validation.files. The first reason: {first}"
            )
            raise DataError(Problem("validation.folder", sentence))

    def train_dataloader(self) -> ResumableLoader:
        """Return the loader of the epoch plan."""
        return self._loader(
            self.train_set,
            shuffle=self.loading.shuffle,
            accumulation=self.loading.accumulation,
        )

    def held_out_loader(self) -> ResumableLoader:
        """Return the loader of the held-out images, always in the same order."""
        return self._loader(self.validation_set, shuffle=False, accumulation=1)

    def probe_loader(self) -> ResumableLoader | None:
        """Return the loader of the trained images that validation watches, or None."""
        if not self.probe_set.items:
            return None
        return self._loader(self.probe_set, shuffle=False, accumulation=1)

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
            rotation=self.rotation if dataset is self.train_set else None,
            by_count=self.loading.by_count,
        )
        return ResumableLoader(
            dataset,
            sampler,
            num_workers=self.loading.num_workers,
            persistent_workers=self.loading.persistent_workers,
            prefetch_factor=self.loading.prefetch_factor,
        )

    def _codec_on_its_device(self) -> LatentCodec:
        return self.load_codec().to("cuda" if torch.cuda.is_available() else "cpu")


def _leave_out_bad(images: ValidationDataset) -> dict[int, Problem]:
    """Take the images that cannot be read out of a set, and return why, by their former place."""
    faults = images.faults()
    images.items = tuple(item for place, item in enumerate(images.items) if place not in faults)
    return faults

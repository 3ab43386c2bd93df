"""A DataLoader that knows its position, so that a run continues in the middle of an epoch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from loralab.data.batch import Batch, Sample, collate
from loralab.data.sampler import BucketBatchSampler, MicroBatch
from loralab.errors import Problem, UserError


class ResumableLoader(DataLoader[Batch]):
    """Counts the micro-batches handed out, not those prefetched by workers.

    Lightning saves and restores any loader with `state_dict` and `load_state_dict`.
    """

    def __init__(
        self,
        dataset: Any,
        batch_sampler: BucketBatchSampler,
        *,
        num_workers: int,
        persistent_workers: bool = True,
        prefetch_factor: int = 2,
    ) -> None:
        """Keep the parts.

        Args:
            dataset: Returns the samples of a micro-batch.
            batch_sampler: The plan.
            num_workers: Processes that load; 0 loads in the main one.
            persistent_workers: Keep the processes from epoch to epoch.
            prefetch_factor: Micro-batches that each process loads ahead.
        """
        super().__init__(
            _Telling(dataset),
            batch_sampler=batch_sampler,  # type: ignore[arg-type]  # yields MicroBatch
            collate_fn=_collate_or_tell,
            num_workers=num_workers,
            persistent_workers=persistent_workers and num_workers > 0,
            prefetch_factor=prefetch_factor if num_workers else None,
            pin_memory=_cuda_available(),
        )
        self._plan = batch_sampler
        self._handed_out = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the micro-batches that are left of the epoch."""
        self._handed_out = self._plan.position  # read before workers start to prefetch
        batches = super().__iter__()
        while (batch := self._next(batches)) is not None:
            if isinstance(batch, UserError):
                raise batch
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its micro-batches were handed out."""
        return {"epoch": self._plan.epoch, "position": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration where the state was taken."""
        self._plan.load_state_dict(state)
        self._handed_out = state["position"]

    def _next(self, batches: Iterator[Any]) -> Any:
        """Return the next batch, or None at the end; name what to do about a killed process."""
        try:
            return next(batches, None)
        except RuntimeError as error:  # torch 2.13 has no class of its own for it
            if not re.search("DataLoader worker .*(exited unexpectedly|killed by)", str(error)):
                raise
            sentence = (
                f"data.num_workers is {self.num_workers}, and a loading process was killed, most "
                "likely because memory ran out; lower it, then continue with resume=auto."
            )
            raise UserError(Problem("data.num_workers", sentence)) from error


def _cuda_available() -> bool:
    import torch

    return torch.cuda.is_available()


class _Telling(Dataset[Any]):
    """Returns a user's error instead of raising it: torch would wrap a worker's in a traceback."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, micro_batch: MicroBatch) -> list[Sample] | UserError:
        try:
            samples: list[Sample] = self.dataset.__getitems__(micro_batch)
        except UserError as error:
            return error
        return samples


def _collate_or_tell(samples: list[Sample] | UserError) -> Batch | UserError:
    return samples if isinstance(samples, UserError) else collate(samples)

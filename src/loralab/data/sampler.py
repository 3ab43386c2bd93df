"""The plan of an epoch: which images go together, in which order, with which share of the loss.

The plan is one list that every rank computes alike. A window is what one optimizer step sees: the
micro-batches of all ranks and all accumulation rounds.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch.utils.data import Sampler

from loralab.data.buckets import Bucket


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass sees.

    Attributes:
        epoch: The epoch that the plan belongs to.
        number: Position in the epoch's full plan, counted before the ranks share it out.
        indices: Positions in the data set, all of one bucket.
        weights: Each sample's share of its window; a window's shares sum to 1, fillers have 0.
    """

    epoch: int
    number: int
    indices: tuple[int, ...]
    weights: tuple[float, ...]


def epoch_plan(
    bucket_of: Sequence[Bucket],
    weights: Sequence[float],
    *,
    batch_size: int,
    accumulation: int,
    world_size: int,
    seed: int,
    epoch: int,
    shuffle: bool,
) -> list[MicroBatch]:
    """Return all micro-batches of an epoch, a whole number of windows.

    Each item appears once with its weight. A short last window is filled with weight-0 repeats of
    the plan's first micro-batches, so that all ranks step together.

    Args:
        bucket_of: Bucket of each item.
        weights: Loss weight of each item, above 0.
        batch_size: Most items in a micro-batch.
        accumulation: Micro-batches that each rank adds up for one step.
        world_size: Number of ranks.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        shuffle: Whether to shuffle; otherwise buckets and their items keep their order.
    """
    assert len(bucket_of) == len(weights) > 0, (len(bucket_of), len(weights))
    assert all(weight > 0 for weight in weights), "an item without weight would never be learnt"
    chunks = _chunks(bucket_of, batch_size, seed, epoch, shuffle)
    window = world_size * accumulation
    plan = []
    for start in range(0, len(chunks), window):
        group = chunks[start : start + window]
        total = sum(weights[index] for chunk in group for index in chunk)
        for number, chunk in enumerate(group, start):
            shares = tuple(weights[index] / total for index in chunk)
            plan.append(MicroBatch(epoch, number, chunk, shares))
    for number in range(len(plan), -(-len(plan) // window) * window):
        source = plan[number % len(chunks)]
        plan.append(replace(source, number=number, weights=(0.0,) * len(source.indices)))
    return plan


class BucketBatchSampler(Sampler[MicroBatch]):
    """Yields one rank's micro-batches of the epoch plan and can start in the middle of an epoch.

    ``position`` is where the next iteration starts, counted in this rank's micro-batches, and is
    used once. The loader sets it, since it alone tells handed out from prefetched.
    """

    def __init__(
        self,
        bucket_of: Sequence[Bucket],
        weights: Sequence[float],
        *,
        batch_size: int,
        accumulation: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        """Keep the options; ``epoch_plan`` describes them. The first epoch is 0."""
        assert 0 <= rank < world_size, (rank, world_size)
        self.bucket_of = tuple(bucket_of)
        self.weights = tuple(weights)
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.epoch = 0
        self.position = 0

    @property
    def sampler(self) -> BucketBatchSampler:
        """Return itself: Lightning 2.6 announces the epoch to ``batch_sampler.sampler`` alone."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Plan this epoch from the next iteration on; ``position`` stays."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the micro-batches of one rank in a whole epoch, a multiple of the accumulation."""
        counts = Counter(self.bucket_of).values()
        chunks = sum(-(-count // self.batch_size) for count in counts)
        return -(-chunks // (self.world_size * self.accumulation)) * self.accumulation

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches from ``position`` on, and reset ``position``.

        A generator, so that asking for an iterator consumes nothing: torch's loader with workers
        asks twice and drops the first.
        """
        plan = epoch_plan(
            self.bucket_of,
            self.weights,
            batch_size=self.batch_size,
            accumulation=self.accumulation,
            world_size=self.world_size,
            seed=self.seed,
            epoch=self.epoch,
            shuffle=self.shuffle,
        )
        start, self.position = self.position, 0
        yield from plan[self.rank :: self.world_size][start:]

    def state_dict(self) -> dict[str, int]:
        """Return epoch and start position."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take up epoch and start position; the end of an epoch is the start of one."""
        position = state["position"]
        assert 0 <= position <= len(self), f"position {position} of {len(self)}"
        self.epoch, self.position = state["epoch"], position % len(self)


def _chunks(
    bucket_of: Sequence[Bucket], batch_size: int, seed: int, epoch: int, shuffle: bool
) -> list[tuple[int, ...]]:
    """Cut each bucket's items into micro-batches; each bucket has a shuffling stream of its own."""
    assert batch_size >= 1, batch_size
    members: dict[Bucket, list[int]] = defaultdict(list)
    for index, bucket in enumerate(bucket_of):
        members[bucket].append(index)
    chunks: list[tuple[int, ...]] = []
    for bucket, indices in sorted(members.items()):
        if shuffle:
            random.Random(f"{seed}:{epoch}:{bucket.height}x{bucket.width}:items").shuffle(indices)
        starts = range(0, len(indices), batch_size)
        chunks += [tuple(indices[start : start + batch_size]) for start in starts]
    if shuffle:
        random.Random(f"{seed}:{epoch}:micro_batches").shuffle(chunks)
    return chunks

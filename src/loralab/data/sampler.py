"""The plan of an epoch: which images go together, in which order, with which share of the loss.

The plan is one list that every rank computes alike. A window is what one optimizer step sees: the
micro-batches of all ranks and all accumulation rounds.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from torch.utils.data import Sampler

from loralab.data.buckets import Bucket
from loralab.data.prior import Rotation


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass sees.

    Attributes:
        epoch: The epoch that the plan belongs to.
        number: Position in the epoch's full plan, counted before the ranks share it out.
        indices: Positions in the data set, all of one bucket.
        weights: Each sample's share of its window; a window's shares sum to 1 (unless they are
            taken by count), fillers have 0.
        step: Optimizer steps done before this one, over all epochs.
        first: Place of its first sample among the samples of its window.
        window_size: Samples in its window, without fillers.
    """

    epoch: int
    number: int
    indices: tuple[int, ...]
    weights: tuple[float, ...]
    step: int = 0
    first: int = 0
    window_size: int = 0


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
    rotation: Rotation | None = None,
    by_count: bool = False,
) -> list[MicroBatch]:
    """Return all micro-batches of an epoch, a whole number of windows.

    Each item appears once with its weight, unless it rests. A short last window is filled with
    weight-0 repeats of the plan's first micro-batches, so that all ranks step together.

    Args:
        bucket_of: Bucket of each item.
        weights: Loss weight of each item, above 0.
        batch_size: Most items in a micro-batch.
        accumulation: Micro-batches that each rank adds up for one step.
        world_size: Number of ranks.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        shuffle: Whether to shuffle; otherwise buckets and their items keep their order.
        rotation: Items that take turns from epoch to epoch.
        by_count: Divide weights by the number of items in the micro-batch and of micro-batches in
            a full window, as sd-scripts does, in place of the window's sum of weights.
    """
    assert len(bucket_of) == len(weights) > 0, (len(bucket_of), len(weights))
    assert all(weight > 0 for weight in weights), "an item without weight would never be learnt"
    resting = rotation.resting(seed, epoch) if rotation is not None else frozenset[int]()
    chunks = _chunks(bucket_of, resting, batch_size, seed, epoch, shuffle)
    size = world_size * accumulation
    num_windows = -(-len(chunks) // size)
    plan: list[MicroBatch] = []
    for window in range(num_windows):
        start, step = window * size, epoch * num_windows + window
        group = chunks[start : start + size]
        total = sum(weights[index] for chunk in group for index in chunk)
        first, window_size = 0, sum(len(chunk) for chunk in group)
        for number, chunk in enumerate(group, start):
            whole = len(chunk) * size if by_count else total
            shares = tuple(weights[index] / whole for index in chunk)
            plan.append(MicroBatch(epoch, number, chunk, shares, step, first, window_size))
            first += len(chunk)
    for number in range(len(plan), num_windows * size):
        source, step = plan[number % len(chunks)], plan[-1].step
        shares = (0.0,) * len(source.indices)
        plan.append(replace(source, number=number, weights=shares, step=step))
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
        rotation: Rotation | None = None,
        by_count: bool = False,
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
        self.rotation = rotation
        self.by_count = by_count
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
        resting = self.rotation.resting(self.seed, 0) if self.rotation else frozenset[int]()
        counts = Counter(
            bucket for index, bucket in enumerate(self.bucket_of) if index not in resting
        )
        chunks = sum(-(-count // self.batch_size) for count in counts.values())
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
            rotation=self.rotation,
            by_count=self.by_count,
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
    bucket_of: Sequence[Bucket],
    resting: Collection[int],
    batch_size: int,
    seed: int,
    epoch: int,
    shuffle: bool,
) -> list[tuple[int, ...]]:
    """Cut each bucket's items into micro-batches; each bucket has a shuffling stream of its own."""
    assert batch_size >= 1, batch_size
    members: dict[Bucket, list[int]] = defaultdict(list)
    for index, bucket in enumerate(bucket_of):
        if index not in resting:
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

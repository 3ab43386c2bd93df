"""What became of every image, and a receipt for the order in which images were handed out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from loralab.data.batch import Batch
from loralab.data.dataset import Item
from loralab.errors import Problem


@dataclass
class OrderReceipt:
    """A hash over what an epoch handed out, micro-batch by micro-batch in the order of the plan.

    It covers content, final caption, cut and variant of every sample that counts. Fillers are left
    out, because their number depends on the number of ranks.

    Attributes:
        epoch: The epoch.
        micro_batches: How many are covered so far.
        sha256: The hash as 64 hex characters.
    """

    epoch: int
    micro_batches: int = 0
    sha256: str = ""

    def extend(self, digest: str) -> None:
        """Cover one more micro-batch."""
        self.sha256 = hashlib.sha256(f"{self.sha256}{digest}".encode()).hexdigest()
        self.micro_batches += 1


@dataclass
class Tally:
    """What one rank has handed to training since the ranks last met.

    Attributes:
        digests: (epoch, number in the plan, digest) of each micro-batch.
        visits: How often each key was trained on.
        fillers: Samples of weight 0, which only fill a window.
        failures: (key, reason) of samples that could not be made -> how often.
        samples: Sum of the batch lengths.
        micro_batches: Number of batches.
    """

    digests: list[tuple[int, int, str]] = field(default_factory=list)
    visits: Counter[str] = field(default_factory=Counter)
    fillers: int = 0
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    samples: int = 0
    micro_batches: int = 0

    def add(self, batch: Batch) -> None:
        """Note a batch as training received it."""
        rows = zip(batch["keys"], batch["captions"], batch["cuts"], batch["is_filler"], strict=True)
        counted = [(key, caption, cut) for key, caption, cut, is_filler in rows if not is_filler]
        self.samples += len(batch["keys"])
        self.micro_batches += 1
        self.fillers += len(batch["keys"]) - len(counted)
        self.visits.update(key for key, _, _ in counted)
        self.failures.update(batch.get("failures", []))
        if counted:
            digest = hashlib.sha256(json.dumps(counted).encode()).hexdigest()
            self.digests.append((batch["epoch"], batch["micro_batch"], digest))


class Account:
    """The account of a run over its whole life, resumed or not."""

    def __init__(
        self,
        items: Sequence[Item],
        *,
        held_out: Sequence[Item] = (),
        skipped: Sequence[Problem] = (),
    ) -> None:
        """Open the account.

        Args:
            items: Training items.
            held_out: Images that only validation sees.
            skipped: Why images were left out; the key is their file.
        """
        self.items = tuple(items)
        self.held_out = [str(item.record.path) for item in held_out]
        self.skipped = tuple(skipped)
        self.visits = torch.zeros(len(items), dtype=torch.int64)
        self.fillers = self.samples = self.micro_batches = 0
        self.failures: Counter[tuple[str, str]] = Counter()
        self.receipts: list[OrderReceipt] = []
        self._index_of = {item.key: index for index, item in enumerate(self.items)}

    def add(self, tallies: Iterable[Tally]) -> None:
        """Add what all ranks handed out; all of them have come equally far in the plan."""
        digests: list[tuple[int, int, str]] = []
        for tally in tallies:
            digests += tally.digests
            for key, count in tally.visits.items():
                self.visits[self._index_of[key]] += count
            self.fillers += tally.fillers
            self.samples += tally.samples
            self.micro_batches += tally.micro_batches
            self.failures += tally.failures
        for epoch, _, digest in sorted(digests):
            if not self.receipts or self.receipts[-1].epoch != epoch:
                self.receipts.append(OrderReceipt(epoch))
            self.receipts[-1].extend(digest)

    def leave_out(self, faults: Mapping[int, Problem]) -> None:
        """Move held-out images, by their place, to those that are skipped, with the reasons."""
        self.skipped += tuple(
            Problem(self.held_out[place], fault.message) for place, fault in faults.items()
        )
        self.held_out = [p for place, p in enumerate(self.held_out) if place not in faults]

    def figures(self) -> dict[str, int]:
        """Return the sums; seen, repeated and fillers together are all samples of all batches."""
        images = self._visits_by_image()
        failed = {str(self._path(key)) for key, _ in self.failures}
        seen = sum(count > 0 for count in images.values())
        return {
            "micro_batches": self.micro_batches,
            "samples": self.samples,
            "seen": seen,
            "repeated": int(self.visits.sum()) - seen,
            "fillers": self.fillers,
            "not_reached": sum(not n and path not in failed for path, n in images.items()),
            "failed": sum(self.failures.values()),
            "skipped": len({problem.key for problem in self.skipped}),
            "held_out": len(self.held_out),
        }

    def as_json(self) -> str:
        """Return the whole account: sums, receipts, reasons, and the visits of every image."""
        failures = [
            {"path": str(self._path(key)), "count": count, "reason": reason}
            for (key, reason), count in sorted(self.failures.items())
        ]
        content = {
            "figures": self.figures(),
            "order_receipts": [vars(receipt) for receipt in self.receipts],
            "skipped": [{"path": p.key, "reason": p.message} for p in self.skipped],
            "failed": failures,
            "held_out": self.held_out,
            "visits": self._visits_by_image(),
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {
            "visits": self.visits.clone(),
            "fillers": self.fillers,
            "samples": self.samples,
            "micro_batches": self.micro_batches,
            "failures": [(*failure, count) for failure, count in self.failures.items()],
            "receipts": [vars(receipt).copy() for receipt in self.receipts],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint ended."""
        visits: Tensor = state["visits"]
        assert visits.shape == self.visits.shape, (visits.shape, self.visits.shape)
        self.visits = visits.clone()
        self.fillers, self.samples = state["fillers"], state["samples"]
        self.micro_batches = state["micro_batches"]
        self.failures = Counter({(key, reason): n for key, reason, n in state["failures"]})
        self.receipts = [OrderReceipt(**receipt) for receipt in state["receipts"]]

    def _visits_by_image(self) -> dict[str, int]:
        visits: Counter[str] = Counter()
        for item, count in zip(self.items, self.visits.tolist(), strict=True):
            visits[str(item.record.path)] += count
        return dict(visits)

    def _path(self, key: str) -> object:
        return self.items[self._index_of[key]].record.path

"""Which of several runs is better, and is that more than chance? Reads files; needs no torch.

Every run has measured the same held-out images at the same noise, so runs are compared image by
image: what makes one image harder than another does not count.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from loralab.app.folders import CONFIG_FILE
from loralab.errors import Collector, Problem, UserError

FILE = "validation.json"  # written by the callback that validates
SIGNIFICANCE = 0.05  # chance that among all pairs one is called different and is not
_SETTINGS = {  # the key that sets it -> its name in the file
    "validation.seed": "seed",
    "validation.strata (timesteps)": "timesteps",
    "model.prediction_type": "prediction_type",
}
BEST, WORSE, ALIKE = "best", "worse than the best", "not distinguishable"


@dataclass(frozen=True)
class Losses:
    """The last validation of a run.

    Attributes:
        run: Its folder.
        step: Optimizer steps done.
        by_image: Loss of every held-out image, mean over the strata, by content and size.
        names: The images' file names by the same keys.
        settings: What else was asked, by the key that sets it.
    """

    run: Path
    step: int
    by_image: Mapping[str, float]
    names: Mapping[str, str]
    settings: Mapping[str, Any]

    @property
    def mean(self) -> float:
        """The run's val/loss."""
        return fmean(self.by_image.values())


@dataclass(frozen=True)
class Row:
    """One run beside the best; differences are its loss less that of the best, image by image."""

    run: str
    step: int
    loss: float
    stderr: float
    difference: float
    difference_stderr: float
    p_value: float
    verdict: str


def compare(places: Sequence[Path]) -> list[Row]:
    """Return a row for each run, the lowest loss first.

    Args:
        places: Run folders, or folders that hold some, such as a sweep's.

    Raises:
        UserError: Fewer than two runs, or runs that did not measure the same.
    """
    problems: list[Problem] = []
    collect = Collector(problems)
    folders = {run: None for place in places for run in collect(_runs_in, place) or ()}
    found = [losses for run in folders if (losses := collect(read_losses, run)) is not None]
    if len(folders) < 2 and not problems:
        text = "RUN is one run; give at least two, or a folder that holds them."
        problems.append(Problem("RUN", text))
    for other in found[1:]:
        problems += [
            Problem("RUN", f"{sentence}; validate both alike, then compare.")
            for sentence in _differences(found[0], other)
        ]
    if problems:
        raise UserError(*problems)
    return _rows(sorted(found, key=lambda entry: entry.mean))


def read_losses(folder: Path) -> Losses:
    """Return the last validation of a run.

    Raises:
        UserError: There is none, or its file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        text = (
            f"{path} is missing: the run has not been validated; train with validation=default, or "
            "wait for the first validation."
        )
        raise UserError(Problem("RUN", text))
    try:
        losses = _parse(folder, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        text = f"{path} is damaged; continue the run, which writes it anew, or leave it out."
        raise UserError(Problem("RUN", text)) from error
    if not math.isfinite(losses.mean):
        text = f"{folder}: the last loss is not finite, so the run diverged; leave it out."
        raise UserError(Problem("RUN", text))
    if len(losses.by_image) < 2:
        text = f"{folder} holds one image out, which cannot tell a gain from chance; hold out more."
        raise UserError(Problem("RUN", text))
    return losses


def chance_of_a_larger(t: float, freedom: int) -> float:
    """Return the probability of ``|T| > t`` for Student's t with whole degrees of freedom.

    Abramowitz and Stegun (1964), 26.7.3 and 26.7.4.
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = (cosine, 0.0) if freedom % 2 else (1.0, 0.0)
    for power in range(freedom % 2, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    inside = (angle + sine * total) * 2 / math.pi if freedom % 2 else sine * total
    return max(0.0, 1.0 - inside)


def conclusion(rows: Sequence[Row]) -> str:
    """Say in one sentence what may be concluded."""
    best, others = rows[0], rows[1:]
    worse = sum(row.verdict == WORSE for row in others)
    alike = ", ".join(row.run for row in others if row.verdict == ALIKE)
    if not worse:
        return f"No run is better than another beyond chance; {best.run} has the lowest loss."
    beaten = f"{best.run} is better than {worse} of {len(others)} others"
    return f"{beaten}; not distinguishable from {alike}." if alike else f"{beaten}."


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows for people: runs are named below the folder that all of them share."""
    shared = os.path.commonpath([Path(row.run).absolute().parent for row in rows])
    names = [os.path.relpath(Path(row.run).absolute(), shared) for row in rows]
    return [{**vars(row), "run": name} for row, name in zip(rows, names, strict=True)]


def _rows(ranked: Sequence[Losses]) -> list[Row]:
    best, rows = ranked[0], []
    num_pairs = math.comb(len(ranked), 2)  # the best was chosen by looking: every pair counts
    for entry in ranked:
        paired = [loss - best.by_image[key] for key, loss in entry.by_image.items()]
        difference, stderr = fmean(paired), _stderr(paired)
        freedom = len(paired) - 1
        if stderr == 0:
            p_value = float(difference == 0)
        else:
            p_value = min(1.0, num_pairs * chance_of_a_larger(difference / stderr, freedom))
        verdict = BEST if entry is best else WORSE if p_value < SIGNIFICANCE else ALIKE
        own = _stderr(entry.by_image.values())
        rows.append(
            Row(str(entry.run), entry.step, entry.mean, own, difference, stderr, p_value, verdict)
        )
    return rows


def _stderr(values: Collection[float]) -> float:
    return stdev(values) / math.sqrt(len(values))


def _parse(folder: Path, facts: dict[str, Any]) -> Losses:
    step, losses = max((int(key), value) for key, value in facts["losses"].items())
    keys = [f"{image['digest']} {image['size']}" for image in facts["images"]]
    return Losses(
        folder,
        step,
        dict(zip(keys, map(float, losses), strict=True)),
        {key: image["name"] for key, image in zip(keys, facts["images"], strict=True)},
        {key: facts[name] for key, name in _SETTINGS.items()},
    )


def _runs_in(place: Path) -> list[Path]:
    if (place / CONFIG_FILE).is_file():
        return [place]
    runs = sorted(path.parent for path in place.glob(f"*/{CONFIG_FILE}"))
    if not runs:
        reason = "holds no run" if place.is_dir() else "does not exist"
        text = f"{place} {reason}; give run folders such as outputs/demo/RUN_ID, or a sweep's."
        raise UserError(Problem("RUN", text))
    return runs


def _differences(one: Losses, other: Losses) -> list[str]:
    """Return what the second was asked otherwise than the first."""
    sentences = [
        f"{key} of {other.run} is {theirs}, and that of {one.run} is {one.settings[key]}"
        for key, theirs in other.settings.items()
        if theirs != one.settings[key]
    ]
    names = {**one.names, **other.names}
    unshared = sorted(names[key] for key in one.by_image.keys() ^ other.by_image.keys())
    if unshared:
        shown = ", ".join(dict.fromkeys(unshared[:3])) + (", ..." if len(unshared) > 3 else "")
        sentences.append(f"held-out images of {other.run} and {one.run} differ: {shown}")
    return sentences

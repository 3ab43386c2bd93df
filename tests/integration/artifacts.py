"""What a run leaves behind, read back for comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from loralab.training.callbacks.checkpoint import checkpoints

CLOCKS = ("speed/", "memory/")  # curves that no two runs share


def adapter(folder: Path, *, layout: str = "kohya") -> dict[str, torch.Tensor]:
    """Return the tensors of the last adapter file of a run."""
    ending = ".diffusers.safetensors" if layout == "diffusers" else ".safetensors"
    (path,) = [
        path
        for path in (folder / "adapters").iterdir()
        if path.name == path.name.split(".")[0] + ending
        and "-best." not in path.name
        and "-step" not in path.name
    ]
    return load_file(path)


def last_checkpoint(folder: Path) -> dict[str, Any]:
    """Return the content of a run's newest checkpoint."""
    path = checkpoints(folder / "checkpoints")[-1]
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) by tag as TensorBoard shows them, without clocks."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.startswith(CLOCKS)
    }


def pictures(folder: Path) -> dict[str, list[int]]:
    """Return the steps of TensorBoard's pictures by tag."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}


def names(folder: Path) -> list[str]:
    """Return all that a run has left, but for TensorBoard's files: a resumed run has more."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.startswith("events."))


def differing(one: Any, other: Any, place: str = "") -> list[str]:
    """Return the places where two nested values are not equal bit for bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype
        return [] if same and torch.equal(one, other) else [place]
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{place}: {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [found for key in one for found in differing(one[key], other[key], f"{place}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for index, pair in pairs for found in differing(*pair, f"{place}[{index}]")]
    return [] if one == other else [place]

"""Recorded micro-batches: a safetensors file of everything that a training step is made from.

Any trainer can write one. Micro-batch n is the tensors ``n.NAME``; numbers may have leading zeros
and count from anything upwards. B is the number of samples, (h, w) are latent cells:

| name | shape | meaning |
|---|---|---|
| ``latents`` | (B, C, h, w) | scaled latents |
| ``noise`` | (B, C, h, w) | the noise that the target is made of |
| ``timesteps`` | (B,) | |
| ``input_ids`` | (B, R, L) | tokens, R rows of L; (B, E, R, L) for E text encoders |
| ``input_noise`` | (B, C, h, w) | the noise that is mixed in, if it is another |
| ``loss_weight`` | (B,) | share of each sample in its optimizer step |
| ``mask`` | (B, 1, h, w) | how much each cell counts |
| ``sizes`` | (B, 6) | heights and widths of the file, top and left of the cut, of the picture |
| ``place`` | (2,) | epoch and number in it: what dropout is seeded by |
| ``loss``, ``gradient_norm`` | () | what came of it, to be compared with |

The first four are needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from loralab.data.batch import Batch
from loralab.errors import DataError, Problem
from loralab.files import replacing

DIMENSIONS: Mapping[str, tuple[int, ...]] = {
    "latents": (4,), "noise": (4,), "timesteps": (1,), "input_ids": (2, 3, 4), "input_noise": (4,),
    "loss_weight": (1,), "mask": (4,), "sizes": (2,), "place": (1,), "loss": (0, 1),
    "gradient_norm": (0, 1),
}  # fmt: skip
"""Name -> how many dimensions it may have."""
NEEDED = ("latents", "noise", "timesteps", "input_ids")
WHOLE_NUMBERS = ("timesteps", "input_ids", "sizes", "place")

MicroBatchTensors = dict[str, Tensor]


@dataclass(frozen=True)
class Recording:
    """The micro-batches of a file in their order, and the names that are not of ours."""

    micro_batches: tuple[MicroBatchTensors, ...]
    unused: tuple[str, ...]

    @property
    def text_rows(self) -> int:
        """Return the rows of tokens that the context has."""
        tokens = self.micro_batches[0]["input_ids"]
        return tokens.shape[-2] if tokens.ndim > 2 else 1


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one micro-batch, or many with their numbers; the file is there as a whole or not."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as part:
        save_file(content, part)


def read_recording(path: Path) -> Recording:
    """Read a recording.

    Raises:
        DataError: It cannot be read, or micro-batches lack tensors or have them of wrong shapes;
            every problem.
    """
    try:
        content = load_file(path)
    except (OSError, SafetensorError) as error:
        text = f"{path} cannot be read as a safetensors file ({error}); restore it or give another."
        raise DataError(Problem(str(path), text)) from error
    found: dict[int, MicroBatchTensors] = {}
    unused: list[str] = []
    problems: list[str] = []
    for key, tensor in content.items():
        match = re.fullmatch(r"(\d+)\.(\w+)", key)
        if not match or match[2] not in DIMENSIONS:
            unused.append(key)
            continue
        number, name = int(match[1]), match[2]
        if name in found.setdefault(number, {}):
            problems.append(f"has {number}.{name} twice, once with leading zeros")
        if name in WHOLE_NUMBERS:
            if not torch.equal(tensor, tensor.trunc()) or tensor.min() < 0:
                problems.append(f"has {number}.{name} that are not whole numbers from 0 upwards")
            tensor = tensor.long()
        found[number][name] = tensor
    problems += [text for number in sorted(found) for text in _problems(number, found[number])]
    if not found:
        problems = [f"holds no micro-batch; it needs tensors such as 0.{NEEDED[0]}"]
    elif not problems and len({tokens.shape[1:] for tokens in _all(found, "input_ids")}) > 1:
        problems = ["has input_ids of several lengths; pad all of them alike"]
    if problems:
        raise DataError(*(Problem(str(path), f"{path} {problem}.") for problem in problems))
    return Recording(tuple(found[number] for number in sorted(found)), tuple(sorted(unused)))


def recorded_epochs(
    recording: Recording, *, accumulation: int, epoch_length: int | None = None
) -> list[list[list[int]]]:
    """Return the numbers of the micro-batches of each optimizer step of each epoch.

    Args:
        recording: The micro-batches; a recorded place tells the epoch.
        accumulation: Micro-batches of an optimizer step, fewer at the end of an epoch.
        epoch_length: Micro-batches of an epoch, where no place is recorded; None is all.
    """
    epochs: dict[int, list[int]] = {}
    for number, tensors in enumerate(recording.micro_batches):
        by_length = number // epoch_length if epoch_length else 0
        epoch = int(tensors["place"][0]) if "place" in tensors else by_length
        epochs.setdefault(epoch, []).append(number)
    return [
        [numbers[first : first + accumulation] for first in range(0, len(numbers), accumulation)]
        for numbers in epochs.values()
    ]


def recorded_batches(
    recording: Recording,
    windows: Sequence[Sequence[int]],
    *,
    accumulation: int,
    by_count: bool,
    vae_factor: int,
) -> list[Batch]:
    """Return the micro-batches as training sees them.

    Samples without a recorded share count alike in their optimizer step, a short one included;
    the shares are those of `loralab.data.sampler.epoch_plan`. A short step begins with fillers of
    weight 0, so that all steps have `accumulation` micro-batches.

    Args:
        recording: The micro-batches.
        windows: Numbers of the micro-batches of each optimizer step.
        accumulation: Micro-batches of an optimizer step.
        by_count: Divide by the samples of the micro-batch and by `accumulation`, as sd-scripts.
        vae_factor: Pixels per latent cell along one side, where no sizes are recorded.
    """
    entries, batches = recording.micro_batches, []
    for window in windows:
        for _ in range(accumulation - len(window)):
            filler = _batch(entries[window[0]], window[0], vae_factor)
            filler["loss_weight"] = torch.zeros(len(filler["keys"]))
            batches.append(filler | {"is_filler": [True] * len(filler["keys"])})
        samples = sum(len(entries[number]["latents"]) for number in window)
        for number in window:
            tensors = entries[number]
            size = len(tensors["latents"])
            total = size * accumulation if by_count else samples
            shares = tensors.get("loss_weight", torch.full((size,), 1 / total))
            batches.append(_batch(tensors, number, vae_factor) | {"loss_weight": shares.float()})
    return batches


def _batch(tensors: MicroBatchTensors, number: int, vae_factor: int) -> Batch:
    size, _, *cells = tensors["latents"].shape
    height, width = (vae_factor * side for side in cells)
    sizes = tensors.get("sizes", torch.tensor([[height, width, 0, 0, height, width]] * size))
    epoch, place = tensors.get("place", torch.tensor([0, number])).tolist()
    batch: Batch = {
        "captions": [""] * size,
        "keys": [f"{number}.{sample}" for sample in range(size)],
        "epoch": epoch,
        "micro_batch": place,
        "original_size": sizes[:, :2],
        "crop_top_left": sizes[:, 2:4],
        "target_size": sizes[:, 4:],
        "loss_weight": torch.empty(size),
        "index": torch.arange(size),
        "latents": tensors["latents"].float(),
        "noise": tensors["noise"].float(),
        "timesteps": tensors["timesteps"],
        "input_ids": tensors["input_ids"],
    }
    if "input_noise" in tensors:
        batch["input_noise"] = tensors["input_noise"].float()
    if "mask" in tensors:
        batch["mask"] = tensors["mask"].float()
    return batch


def _problems(number: int, tensors: MicroBatchTensors) -> list[str]:
    """Return what a micro-batch lacks, and which of its shapes do not belong together."""
    missing = [name for name in NEEDED if name not in tensors]
    if missing:
        return [f"lacks {number}.{name}" for name in missing]
    shape = tensors["latents"].shape
    wanted: dict[str, Sequence[int]] = {
        "noise": shape, "input_noise": shape, "timesteps": shape[:1], "loss_weight": shape[:1],
        "mask": (*shape[:1], 1, *shape[2:]), "sizes": (*shape[:1], 6), "place": (2,),
    }  # fmt: skip
    for name in ("loss", "gradient_norm"):
        wanted[name] = (1,) * tensors[name].ndim if name in tensors else ()
    problems = []
    for name, tensor in tensors.items():
        fits = tuple(wanted.get(name, tensor.shape)) == tuple(tensor.shape)
        fits = fits and tensor.ndim in DIMENSIONS[name]
        if not fits or (name == "input_ids" and len(tensor) != shape[0]):
            problems.append(
                f"has {number}.{name} of shape {tuple(tensor.shape)}, which does not go with "
                f"{number}.latents of shape {tuple(shape)}"
            )
    return problems


def _all(found: Mapping[int, MicroBatchTensors], name: str) -> list[Tensor]:
    return [tensors[name] for tensors in found.values()]

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
    for key, tensor in content.items():
        match = re.fullmatch(r"(\d+)\.(\w+)", key)
        if match and match[2] in DIMENSIONS:
            whole = match[2] in WHOLE_NUMBERS
            found.setdefault(int(match[1]), {})[match[2]] = tensor.long() if whole else tensor
        else:
            unused.append(key)
    problems = [problem for number in sorted(found) for problem in _problems(number, found[number])]
    if not found:
        problems = [f"holds no micro-batch; it needs tensors such as 0.{NEEDED[0]}"]
    elif not problems and len({tokens.shape[1:] for tokens in _all(found, "input_ids")}) > 1:
        problems = ["has input_ids of several lengths; pad all of them alike"]
    if problems:
        raise DataError(*(Problem(str(path), f"{path} {problem}.") for problem in problems))
    return Recording(tuple(found[number] for number in sorted(found)), tuple(sorted(unused)))


def recorded_batches(
    recording: Recording, *, accumulation: int, by_count: bool, vae_factor: int
) -> list[Batch]:
    """Return the micro-batches as training sees them.

    Samples without a recorded share count alike in their optimizer step, a short last step
    included; the shares are those of `loralab.data.sampler.epoch_plan`.

    Args:
        recording: The micro-batches.
        accumulation: Micro-batches of an optimizer step.
        by_count: Divide by the samples of the micro-batch and by `accumulation`, as sd-scripts.
        vae_factor: Pixels per latent cell along one side, where no sizes are recorded.
    """
    entries, batches = recording.micro_batches, []
    for number, tensors in enumerate(entries):
        first = number - number % accumulation
        window = entries[first : first + accumulation]
        size = len(tensors["latents"])
        total = size * accumulation if by_count else sum(len(one["latents"]) for one in window)
        batch = _batch(tensors, number, vae_factor)
        batch["loss_weight"] = tensors.get("loss_weight", torch.full((size,), 1 / total)).float()
        batches.append(batch)
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

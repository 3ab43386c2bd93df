"""Samples and the batches made of them: the only things that leave the data room.

Sizes and corners are (height, width) and (top, left) in pixels.
"""

# No postponed annotations here: as strings, Python 3.11 would take NotRequired keys for required.
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from loralab.data.augment import PLAIN, Variant


@dataclass(frozen=True)
class Sample:
    """One image on one visit.

    Attributes:
        key: Content digest and repeat, ``digest#n``: with seed and epoch it fixes all randomness.
        index: Position in the data set.
        caption: The caption of this visit; "" if dropped.
        epoch: Epoch of the visit.
        micro_batch: Position of its micro-batch in the epoch's full plan.
        weight: Share of its window; 0 for a filler.
        original_size: Size of the file as displayed.
        crop_top_left: Corner of the cut in the scaled image, mirrored if the sample is.
        target_size: Size of the bucket.
        variant: What else was done to the pixels.
        is_prior: A class image.
        window: Place in its window and samples of that window.
        failure: Key and reason, if it stands in for a sample that could not be made.
        mask: (1, h, w) float32 in [0, 1], how much each latent cell counts; None counts all.
        name: The file, for messages.
        moments: (2C, h, w) float32 mean and log-variance of the VAE, if cached.
        image: (3, H, W) float32 in [-1, 1], if not.
    """

    key: str
    index: int
    caption: str
    epoch: int
    micro_batch: int
    weight: float
    original_size: tuple[int, int]
    crop_top_left: tuple[int, int]
    target_size: tuple[int, int]
    variant: Variant = PLAIN
    is_prior: bool = False
    window: tuple[int, int] = (0, 0)
    failure: tuple[str, str] | None = None
    mask: Tensor | None = None
    name: str = ""
    moments: Tensor | None = None
    image: Tensor | None = None


class Batch(TypedDict):
    """One micro-batch; a plain dict, so that Lightning can pin and move it."""

    moments: NotRequired[Tensor]  # (B, 2C, h, w) float32
    images: NotRequired[Tensor]  # (B, 3, H, W) float32 in [-1, 1]
    captions: list[str]
    keys: list[str]
    epoch: int
    micro_batch: int
    original_size: Tensor  # (B, 2) int64
    crop_top_left: Tensor  # (B, 2) int64
    target_size: Tensor  # (B, 2) int64
    loss_weight: Tensor  # (B,) float32, shares of the window
    mask: NotRequired[Tensor]  # (B, 1, h, w) float32 in [0, 1]
    index: Tensor  # (B,) int64
    # Lists, so that accounts are kept without waiting for a device.
    names: NotRequired[list[str]]  # B, files, for messages
    cuts: NotRequired[list[str]]  # B, where the image was cut and what else was done to it
    is_prior: NotRequired[list[bool]]  # B
    is_filler: NotRequired[list[bool]]  # B, samples of weight 0
    failures: NotRequired[list[tuple[str, str]]]  # key and reason of samples replaced by fillers
    window_place: NotRequired[dict[str, int]]  # place of the first sample, samples of the window
    # Recorded in place of drawn: the seam for replays and parity tests.
    latents: NotRequired[Tensor]  # (B, C, h, w) float32, scaled
    noise: NotRequired[Tensor]  # (B, C, h, w) float32
    input_noise: NotRequired[Tensor]  # (B, C, h, w) float32, mixed in where it is not the noise
    timesteps: NotRequired[Tensor]  # (B,) int64
    input_ids: NotRequired[Tensor]  # (B, L), (B, R, L) or (B, E, R, L) int64


def collate(samples: list[Sample]) -> Batch:
    """Return the samples of one micro-batch as a batch."""
    first = samples[0]
    places = {(sample.epoch, sample.micro_batch) for sample in samples}
    assert len(places) == 1, f"samples of several micro-batches: {sorted(places)}"
    batch: Batch = {
        "captions": [sample.caption for sample in samples],
        "keys": [sample.key for sample in samples],
        "epoch": first.epoch,
        "micro_batch": first.micro_batch,
        "original_size": torch.tensor([sample.original_size for sample in samples]),
        "crop_top_left": torch.tensor([sample.crop_top_left for sample in samples]),
        "target_size": torch.tensor([sample.target_size for sample in samples]),
        "loss_weight": torch.tensor([sample.weight for sample in samples], dtype=torch.float32),
        "index": torch.tensor([sample.index for sample in samples]),
        "cuts": [_cut(sample) for sample in samples],
        "names": [sample.name for sample in samples],
        "is_prior": [sample.is_prior for sample in samples],
        "is_filler": [sample.weight == 0 for sample in samples],
        "failures": [sample.failure for sample in samples if sample.failure is not None],
        "window_place": {"first": first.window[0], "size": first.window[1]},
    }
    if first.moments is not None:
        batch["moments"] = _stack([sample.moments for sample in samples])
    else:
        batch["images"] = _stack([sample.image for sample in samples])
    masks = [sample.mask for sample in samples]
    given = [mask for mask in masks if mask is not None]
    if given:  # class images beside masked ones have none
        whole = torch.ones_like(given[0])
        batch["mask"] = torch.stack([whole if mask is None else mask for mask in masks])
    return batch


def check_batch(batch: Batch) -> None:
    """Assert keys, dtypes and shapes; meant for the first batch of a run.

    Raises:
        AssertionError: If anything is missing or of another shape, dtype or bucket.
    """
    missing = Batch.__required_keys__ - batch.keys()
    unknown = batch.keys() - Batch.__required_keys__ - Batch.__optional_keys__
    assert not missing, f"missing from the batch: {sorted(missing)}"
    assert not unknown, f"unknown in the batch: {sorted(unknown)}"
    size = len(batch["captions"])
    assert len(batch["keys"]) == size, (len(batch["keys"]), size)
    for name in ("original_size", "crop_top_left", "target_size"):
        _check(name, batch[name], torch.int64, (size, 2))
    _check("loss_weight", batch["loss_weight"], torch.float32, (size,))
    _check("index", batch["index"], torch.int64, (size,))
    height, width = batch["target_size"][0].tolist()
    assert (batch["target_size"] == batch["target_size"][0]).all(), "more than one bucket"
    given = {"moments", "images", "latents"} & batch.keys()
    assert len(given) == 1, f"one of moments, images or latents is needed, not {sorted(given)}"
    if "images" in batch:
        _check("images", batch["images"], torch.float32, (size, 3, height, width))
    if "moments" in batch:
        moments = batch["moments"]
        _check("moments", moments, torch.float32, (size, *moments.shape[1:]))
        assert moments.ndim == 4, moments.shape
        assert moments.shape[1] % 2 == 0, f"{moments.shape[1]} moment channels are not in pairs"
        assert fits(moments.shape[-2:], (height, width)), (moments.shape, (height, width))


def fits(cells: Sequence[int], size: Sequence[int]) -> bool:
    """Tell whether (h, w) latent cells cover (height, width) pixels with one whole factor."""
    (rows, columns), (height, width) = cells, size
    if rows < 1 or columns < 1 or height % rows or width % columns:
        return False
    return height // rows == width // columns


def _cut(sample: Sample) -> str:
    (height, width), (top, left) = sample.target_size, sample.crop_top_left
    return f"{height}x{width} at {top},{left}: {sample.variant}"


def _stack(tensors: list[Tensor | None]) -> Tensor:
    present = [tensor for tensor in tensors if tensor is not None]
    assert len(present) == len(tensors), "cached and uncached samples in one micro-batch"
    return torch.stack(present)


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    assert tensor.dtype == dtype, f"{name} is {tensor.dtype}, not {dtype}"
    assert tuple(tensor.shape) == shape, f"{name} is {tuple(tensor.shape)}, not {shape}"

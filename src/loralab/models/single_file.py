"""Parts of a checkpoint file as library objects, converted by diffusers' own functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.loaders import single_file_utils
from safetensors import safe_open
from torch import Tensor, nn

from loralab.models.checkpoint import CheckpointFile
from loralab.models.pickles import read_pickle

converters: Any = single_file_utils
# A part may carry these though its config has no place for them: counters, and what only
# OpenCLIP's own training needs.
SPARE = ("position_ids", "logit_scale", "text_projection.weight")


def load_part(
    source: CheckpointFile,
    part: str,
    skeleton: Any,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
) -> Any:
    """Fill a skeleton on the meta device with a part's weights, each straight to its place.

    Raises:
        ModelError: When the file lacks weights, or has others than the skeleton.
    """
    weights = _convert(source, part, skeleton, _read(source, part, dtype=dtype, device=device))
    wanted = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    complaints = {
        "lacks": sorted(wanted.keys() - found.keys()),
        "has other shapes for": sorted(n for n in wanted.keys() & found if wanted[n] != found[n]),
        "has more than": sorted(n for n in found.keys() - wanted if not _is_spare(n, skeleton)),
    }
    for verb, names in complaints.items():
        if names:
            source.report(
                f"{source.path} {verb} {len(names)} of the weights of a {source.spec.title} "
                f"{part}, the first is {names[0]}; download or convert it again, or name a folder "
                "with its configs with model.config_path."
            )
    source.raise_problems()
    kept = {name: tensor for name, tensor in weights.items() if name in wanted}
    skeleton.load_state_dict(kept, assign=True)
    _fill_position_ids(skeleton, device)
    return skeleton


def _read(
    source: CheckpointFile, part: str, *, dtype: torch.dtype, device: str | torch.device
) -> dict[str, Tensor]:
    """Return the tensors of one part under the names they have in the file."""
    prefix = source.prefix(part)
    if source.is_safetensors:
        with safe_open(source.path, framework="pt", device=str(device)) as file:
            names = [name for name in source.shapes if name.startswith(prefix)]
            return {name: _placed(file.get_tensor(name), dtype, device) for name in names}
    everything = read_pickle(source.path, device="cpu", report=source.report)
    source.raise_problems()
    return {
        name: _placed(
            tensor, dtype, device
        ).clone()  # the file may go away, its map must not matter
        for name, tensor in everything.items()
        if name.startswith(prefix)
    }


def _placed(tensor: Tensor, dtype: torch.dtype, device: str | torch.device) -> Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


def _convert(
    source: CheckpointFile, part: str, skeleton: Any, tensors: dict[str, Tensor]
) -> Mapping[str, Tensor]:
    """Return the tensors under the libraries' names."""
    if part == "unet":
        converted = converters.convert_ldm_unet_checkpoint(tensors, dict(skeleton.config))
    elif part == "vae":
        if "encoder.down_blocks.0.resnets.0.conv1.weight" in tensors:
            return tensors  # a VAE alone, saved by diffusers
        converted = converters.convert_ldm_vae_checkpoint(tensors, dict(skeleton.config))
    else:
        prefix = source.prefix(part)
        if prefix.endswith(".model."):
            converted = converters.convert_open_clip_checkpoint(skeleton, tensors, prefix=prefix)
        else:
            converted = converters.convert_ldm_clip_checkpoint(tensors, remove_prefix=prefix)
        if not hasattr(skeleton, "text_model"):  # transformers 5 dropped the level from one class
            converted = {name.removeprefix("text_model."): t for name, t in converted.items()}
    result: Mapping[str, Tensor] = {name: tensor.contiguous() for name, tensor in converted.items()}
    return result


def _is_spare(name: str, skeleton: Any) -> bool:
    """Tell whether a text encoder's weight may be left over: SD2 drops the last layers."""
    layers = getattr(getattr(skeleton, "text_model", skeleton), "encoder", None)
    number = name.partition("encoder.layers.")[2].partition(".")[0]
    beyond = number.isdigit() and layers is not None and int(number) >= len(layers.layers)
    return beyond or name.endswith(SPARE)


def _fill_position_ids(skeleton: nn.Module, device: str | torch.device) -> None:
    """Give the one buffer that no file holds its content: positions count from zero."""
    for module in skeleton.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                assert name == "position_ids", f"unknown buffer {name}"
                module.position_ids = torch.arange(buffer.shape[-1], device=device)[None]

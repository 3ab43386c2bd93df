"""Parts of a model as library objects: real ones with weights, and skeletons without.

Nothing is fetched. A file that does not fill every weight is refused.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)
from transformers.utils import logging as transformers_logging

from loralab.errors import ModelError, Problem
from loralab.models.checkpoint import CheckpointFile
from loralab.models.family import FamilySpec, TextLayout
from loralab.models.folder import ModelFolder
from loralab.models.opening import Sources, open_model
from loralab.models.single_file import load_part
from loralab.models.source import KEY, ModelPlace, PartSource
from loralab.models.vocabulary import END, clip_tokenizer

SAME_MODEL = "config and weights must come from the same model."
Device = str | torch.device


def load_unet(sources: Sources, *, dtype: torch.dtype, device: Device = "cpu") -> nn.Module:
    """Return the ``UNet2DConditionModel``, frozen and in eval mode."""
    unet: nn.Module = _load(UNet2DConditionModel, sources.base, "unet", dtype, device)
    return unet


def load_text_encoder(
    sources: Sources, layout: TextLayout, *, dtype: torch.dtype, device: Device = "cpu"
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """Return a text encoder, frozen and in eval mode; with its projection where it is pooled."""
    encoder: CLIPTextModel | CLIPTextModelWithProjection = _load(
        _text_class(layout), sources.base, layout.part, dtype, device
    )
    return encoder


def load_vae(
    sources: Sources, *, dtype: torch.dtype = torch.float32, device: Device = "cpu"
) -> nn.Module:
    """Return the ``AutoencoderKL``, frozen and in eval mode."""
    vae: nn.Module = _load(AutoencoderKL, sources.vae, "vae", dtype, device)
    return vae


def load_tokenizer(sources: Sources, layout: TextLayout, *, vocab_size: int) -> CLIPTokenizer:
    """Return the model's tokenizer; that of a checkpoint file ships with the package.

    Raises:
        ModelError: When it has another number of tokens than the text encoder.
    """
    # A few captions at a time gain nothing from threads, and threads before a fork make noise.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    base = sources.base
    if isinstance(base, CheckpointFile):
        if base.given is None:
            return clip_tokenizer(pad_token="!" if layout.open_clip else END)
        base = base.given
    folder = base.path / layout.tokenizer
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    # Without its files transformers 5 makes a tokenizer of two tokens and says nothing.
    if len(tokenizer) != vocab_size:
        _refuse(
            f"{folder} makes a tokenizer of {len(tokenizer)} tokens, but the text encoder's "
            f"vocab_size is {vocab_size}; restore the tokenizer from the same model."
        )
    return tokenizer


def skeletons(place: ModelPlace | str | Path, spec: FamilySpec) -> dict[str, nn.Module]:
    """Return UNet and text encoders on the meta device: names and shapes without weights.

    Raises:
        ModelError: When a config is missing or unreadable.
    """
    base = open_model(place, spec).base
    configs = {part: base.config(part) for part in ("unet", *spec.text_parts)}
    base.raise_problems()
    classes = {layout.part: _text_class(layout) for layout in spec.text}
    return {
        "unet": _skeleton(UNet2DConditionModel, configs["unet"]),
        **{part: _skeleton(cls, configs[part]) for part, cls in classes.items()},
    }


def vae_digest(place: ModelPlace | str | Path, spec: FamilySpec) -> str:
    """Return the SHA-256 (hex) over the VAE's config and weights, for the latent cache's keys.

    Raises:
        ModelError: When one of the two is missing.
    """
    source = open_model(place, spec).vae
    source.config("vae")
    source.check_weights("vae")
    source.raise_problems()
    digest = hashlib.sha256()
    for file in dict.fromkeys((source.config_file("vae"), *source.weight_files("vae"))):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def enable_checkpointing(*, unet: Any, text_encoders: Sequence[Any]) -> None:
    """Recompute activations in backward; takes effect only while a part is in train mode."""
    unet.enable_gradient_checkpointing()
    for encoder in text_encoders:
        encoder.activation_checkpointing_enable({"use_reentrant": False})


def _text_class(
    layout: TextLayout,
) -> type[CLIPTextModel] | type[CLIPTextModelWithProjection]:
    return CLIPTextModelWithProjection if layout.pooled else CLIPTextModel


def _skeleton(cls: Any, config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        if cls in (CLIPTextModel, CLIPTextModelWithProjection):
            return cls(CLIPTextConfig(**config))
        return cls.from_config(config)


def _load(cls: Any, source: PartSource, part: str, dtype: torch.dtype, device: Device) -> Any:
    source.check_weights(part)
    config = source.config(part)
    source.raise_problems()
    if isinstance(source, CheckpointFile):
        skeleton = _skeleton(cls, config)
        module = load_part(source, part, skeleton, dtype=dtype, device=device)
    else:
        assert isinstance(source, ModelFolder)
        module = _load_folder(cls, source, part, dtype).to(device)
    return module.requires_grad_(False).eval()


def _load_folder(cls: Any, folder: ModelFolder, part: str, dtype: torch.dtype) -> Any:
    files = folder.weight_files(part)
    weights = files[0] if len(files) == 1 else files[0].parent  # what messages name
    options: dict[str, Any] = {"variant": folder.variant(part), "torch_dtype": dtype}
    if part.startswith("text_encoder"):
        # Only so that the names come back in `info`; transformers' own error does not tell them.
        options["ignore_mismatched_sizes"] = True
    try:
        with quiet_loading():
            module, info = cls.from_pretrained(
                files[0].parent,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).split(". ")[0]
        message = f"{weights} cannot be loaded as {cls.__name__} ({reason}); {SAME_MODEL}"
        raise ModelError(Problem(KEY, message)) from error
    for kind in ("missing_keys", "mismatched_keys"):
        names = sorted(key if isinstance(key, str) else key[0] for key in info[kind])
        if names:
            verb = "lacks" if kind == "missing_keys" else "has other shapes for"
            _refuse(
                f"{weights} {verb} {len(names)} of the weights of "
                f"{files[0].parent / 'config.json'}, the first is {names[0]}; {SAME_MODEL}"
            )
    return module


def _refuse(message: str) -> None:
    raise ModelError(Problem(KEY, message))


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence the libraries' load reports and progress bars; what matters is raised instead."""
    names = ("diffusers", "transformers")
    levels = {name: logging.getLogger(name).level for name in names}
    bars = transformers_logging.is_progress_bar_enabled()
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]

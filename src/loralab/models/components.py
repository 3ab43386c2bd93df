"""Parts of a model folder as library objects: real ones with weights, and skeletons without.

Only safetensors are read and nothing is fetched. A file that does not fill every weight is refused.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from loralab.errors import ModelError, Problem
from loralab.models.codec import LatentCodec
from loralab.models.facts import VAE_DEFAULTS, model_facts
from loralab.models.folder import CONFIG_FILES, KEY, ModelFolder

SAME_MODEL = "config and weights must come from the same model."

__all__ = [
    "enable_checkpointing",
    "load_codec",
    "load_text_encoder",
    "load_tokenizer",
    "load_unet",
    "model_facts",
    "set_attention",
    "skeletons",
    "vae_digest",
]


def load_unet(path: Path, *, dtype: torch.dtype) -> nn.Module:
    """Return the ``UNet2DConditionModel``, frozen and in eval mode."""
    unet: nn.Module = _load(UNet2DConditionModel, path, "unet", dtype=dtype)
    return unet


def load_text_encoder(path: Path, *, dtype: torch.dtype) -> CLIPTextModel:
    """Return the text encoder, frozen and in eval mode."""
    encoder: CLIPTextModel = _load(CLIPTextModel, path, "text_encoder", dtype=dtype)
    return encoder


def load_codec(path: Path, *, device: str | torch.device = "cpu") -> LatentCodec:
    """Return the VAE in float32, also when its file is in half precision."""
    vae = _load(AutoencoderKL, path, "vae", dtype=torch.float32)
    scale = {**VAE_DEFAULTS, **vae.config}["scaling_factor"]
    return LatentCodec(vae, latent_scale=float(scale)).to(device)


def load_tokenizer(path: Path, *, vocab_size: int) -> CLIPTokenizer:
    """Return the folder's tokenizer.

    Raises:
        ModelError: When it has another number of tokens than the text encoder.
    """
    # A few captions at a time gain nothing from threads, and threads before a fork make noise.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder = Path(path) / "tokenizer"
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    # Without its files transformers 5 makes a tokenizer of two tokens and says nothing.
    if len(tokenizer) != vocab_size:
        _refuse(
            f"{folder} makes a tokenizer of {len(tokenizer)} tokens, but the text encoder's "
            f"vocab_size is {vocab_size}; restore the tokenizer from the same model."
        )
    return tokenizer


def skeletons(path: str | Path) -> dict[str, nn.Module]:
    """Return UNet and text encoder on the meta device: names and shapes without weights.

    Raises:
        ModelError: When a config is missing or unreadable.
    """
    folder = ModelFolder(path)
    unet, text = folder.config("unet"), folder.config("text_encoder")
    folder.raise_problems()
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(unet),  # type: ignore[no-untyped-call]
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        }


def vae_digest(path: str | Path) -> str:
    """Return the SHA-256 (hex) over the VAE's config and weights, for the latent cache's keys.

    Raises:
        ModelError: When one of the two files is missing.
    """
    folder = ModelFolder(path)
    folder.config("vae")
    folder.check_weights("vae")
    folder.raise_problems()
    digest = hashlib.sha256()
    for file in (folder.path / CONFIG_FILES["vae"], *folder.weight_files("vae")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def set_attention(kind: str, *, unet: Any, text_encoder: Any) -> None:
    """Choose the attention of both parts: ``sdpa`` or ``eager``."""
    # `unet.set_attention_backend` changes nothing on this UNet (diffusers 0.42).
    unet.set_attn_processor((AttnProcessor2_0 if kind == "sdpa" else AttnProcessor)())
    text_encoder.set_attn_implementation(kind)


def enable_checkpointing(*, unet: Any, text_encoder: Any) -> None:
    """Recompute activations in backward; takes effect only while a part is in train mode."""
    unet.enable_gradient_checkpointing()
    text_encoder.activation_checkpointing_enable({"use_reentrant": False})


def _load(cls: Any, path: Path, part: str, *, dtype: torch.dtype) -> Any:
    folder = ModelFolder(path)
    folder.check_weights(part)
    folder.raise_problems()
    place, (file,) = folder.path / part, folder.weight_files(part)
    options: dict[str, Any] = {"variant": folder.variant(part), "torch_dtype": dtype}
    if part == "text_encoder":
        # Only so that the names come back in `info`; transformers' own error does not tell them.
        options["ignore_mismatched_sizes"] = True
    try:
        with _quiet():
            module, info = cls.from_pretrained(
                place,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).split(". ")[0]
        message = f"{file} cannot be loaded as {cls.__name__} ({reason}); {SAME_MODEL}"
        raise ModelError(Problem(KEY, message)) from error
    for kind in ("missing_keys", "mismatched_keys"):
        names = sorted(key if isinstance(key, str) else key[0] for key in info[kind])
        if names:
            verb = "lacks" if kind == "missing_keys" else "has other shapes for"
            _refuse(
                f"{file} {verb} {len(names)} of the weights of {place / 'config.json'}, "
                f"the first is {names[0]}; {SAME_MODEL}"
            )
    return module.requires_grad_(False).eval()


def _refuse(message: str) -> None:
    raise ModelError(Problem(KEY, message))


@contextmanager
def _quiet() -> Iterator[None]:
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

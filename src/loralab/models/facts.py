"""Facts of a model folder, read from its JSON configs in milliseconds, without torch.

Families are told apart by structure, never by widths: narrow and pruned models are welcome.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loralab.models.family import ModelFacts
from loralab.models.folder import KEY, WEIGHT_STEMS, ModelFolder

PREDICTION_TYPES = ("epsilon", "v_prediction")
# What the libraries assume when a config leaves a field out, as configs of 2022 do.
VAE_DEFAULTS = {"latent_channels": 4, "scaling_factor": 0.18215}
TEXT_DEFAULTS = {"vocab_size": 49408, "max_position_embeddings": 77, "num_hidden_layers": 12}


def model_facts(path: str | Path, *, family: str) -> ModelFacts:
    """Return what the folder's configs say about a model of ``family``.

    Raises:
        ModelError: Naming every missing or damaged file and every sign of another family.
    """
    folder = ModelFolder(path)
    if not folder.check_exists():
        folder.raise_problems()
    unet, vae = folder.config("unet"), folder.config("vae")
    text, scheduler = folder.config("text_encoder"), folder.config("scheduler")
    for part in WEIGHT_STEMS:
        folder.check_weights(part)
    _check_family(folder, unet, family)
    _check_unet(folder, unet, vae, text)
    _check_vae(folder, vae)
    _check_tokenizer(folder, {**TEXT_DEFAULTS, **text}["vocab_size"] if text else None)
    _check_scheduler(folder, scheduler)
    folder.raise_problems()
    return _facts(family, unet, {**VAE_DEFAULTS, **vae}, {**TEXT_DEFAULTS, **text}, scheduler)


def _facts(
    family: str,
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    text: Mapping[str, Any],
    scheduler: Mapping[str, Any],
) -> ModelFacts:
    vae_factor = 2 ** (len(vae["block_out_channels"]) - 1)
    prediction_type = scheduler.get("prediction_type", "epsilon")
    return ModelFacts(
        family=family,
        prediction_type=prediction_type,
        latent_channels=vae["latent_channels"],
        vae_factor=vae_factor,
        bucket_step=vae_factor * 2 ** (len(unet["down_block_types"]) - 1),
        cross_attention_dim=unet["cross_attention_dim"],
        max_tokens=text["max_position_embeddings"],
        num_text_layers=text["num_hidden_layers"],
        vocab_size=text["vocab_size"],
        native_resolution=unet["sample_size"] * vae_factor,
        latent_scale=float(vae["scaling_factor"]),
        schedule_config={**scheduler, "prediction_type": prediction_type},
    )


def _check_family(folder: ModelFolder, unet: Mapping[str, Any], family: str) -> None:
    found = _detect_family(folder.path, unet)
    if unet and found != family:
        folder.report(
            f"{KEY} is {folder.path}, laid out like {found}, but model.family is {family}; "
            f"give a folder of family {family}."
        )


def _detect_family(path: Path, unet: Mapping[str, Any]) -> str:
    if (path / "text_encoder_2").is_dir() or unet.get("addition_embed_type") == "text_time":
        return "sdxl"
    if unet.get("use_linear_projection"):
        return "sd2"
    return "sd1"


def _check_unet(
    folder: ModelFolder, unet: Mapping[str, Any], vae: Mapping[str, Any], text: Mapping[str, Any]
) -> None:
    file = folder.path / "unet" / "config.json"
    if not unet or not _has_fields(
        folder, file, unet, in_channels=int, cross_attention_dim=int, sample_size=int,
        down_block_types=list,
    ):  # fmt: skip
        return
    if unet.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        folder.report(f"{file} is for {unet['_class_name']}; only UNet2DConditionModel is known.")
    channels = {**VAE_DEFAULTS, **vae}["latent_channels"]
    if vae and unet["in_channels"] != channels:
        folder.report(
            f"{file} has in_channels {unet['in_channels']}, but the VAE makes {channels} latent "
            "channels; inpainting and depth models cannot be trained."
        )
    width = text.get("hidden_size")
    if text and unet["cross_attention_dim"] != width:
        folder.report(
            f"{file} has cross_attention_dim {unet['cross_attention_dim']}, but the text encoder's "
            f"hidden_size is {width}; the two must come from the same model."
        )


def _check_vae(folder: ModelFolder, vae: Mapping[str, Any]) -> None:
    file = folder.path / "vae" / "config.json"
    if not vae or not _has_fields(folder, file, vae, block_out_channels=list):
        return
    if vae.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        folder.report(f"{file} is for {vae['_class_name']}; only AutoencoderKL is known.")
    if vae.get("shift_factor") is not None:
        folder.report(
            f"{file} has shift_factor {vae['shift_factor']}, which belongs to later families; "
            "give the VAE of the same model."
        )


def _check_tokenizer(folder: ModelFolder, vocab_size: int | None) -> None:
    tokenizer = folder.path / "tokenizer"
    vocabulary, merges, single = (
        tokenizer / name for name in ("vocab.json", "merges.txt", "tokenizer.json")
    )
    if vocabulary.is_file() and (merges.is_file() or single.is_file()):
        num_tokens = len(set(folder.read_json(vocabulary)) | _added(folder, tokenizer))
    elif single.is_file():
        content = folder.read_json(single)
        words = set(content.get("model", {}).get("vocab", {}))
        words |= {token["content"] for token in content.get("added_tokens", [])}
        num_tokens = len(words)
    else:
        missing = [str(file) for file in (vocabulary, merges) if not file.is_file()]
        folder.report(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing; the tokenizer "
            "needs vocab.json and merges.txt, or tokenizer.json."
        )
        return
    if vocab_size is not None and num_tokens != vocab_size:
        folder.report(
            f"{tokenizer} knows {num_tokens} tokens, but the text encoder's vocab_size is "
            f"{vocab_size}; the two must come from the same model."
        )


def _added(folder: ModelFolder, tokenizer: Path) -> set[str]:
    file = tokenizer / "added_tokens.json"
    return set(folder.read_json(file)) if file.is_file() else set()


def _check_scheduler(folder: ModelFolder, scheduler: Mapping[str, Any]) -> None:
    file = folder.path / "scheduler" / "scheduler_config.json"
    found = scheduler.get("prediction_type", "epsilon")
    if found not in PREDICTION_TYPES:
        folder.report(
            f"{file} has prediction_type {json.dumps(found)}; allowed are "
            f"{' and '.join(PREDICTION_TYPES)}."
        )


def _has_fields(folder: ModelFolder, file: Path, config: Mapping[str, Any], **kinds: type) -> bool:
    wrong = [name for name, kind in kinds.items() if not isinstance(config.get(name), kind)]
    for name in wrong:
        folder.report(
            f"{file} has {name} {json.dumps(config.get(name))}; "
            f"{'a whole number' if kinds[name] is int else 'a list'} is needed."
        )
    return not wrong

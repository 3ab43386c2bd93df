"""Facts of a model folder, read from its JSON configs in milliseconds, without torch.

Families are told apart by structure, never by widths: narrow and pruned models are welcome.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loralab.models.family import FamilySpec, ModelFacts, TextFacts, TextLayout
from loralab.models.opening import open_model
from loralab.models.source import KEY, ModelPlace, PartSource
from loralab.models.specs import family_spec

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")
# What the libraries assume when a config leaves a field out, as configs of 2022 do.
VAE_DEFAULTS = {
    "latent_channels": 4, "scaling_factor": 0.18215, "block_out_channels": (128, 256, 512, 512)
}  # fmt: skip
TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "projection_dim": 512,
    "max_position_embeddings": 77,
    "num_hidden_layers": 12,
}


def model_facts(
    place: ModelPlace | str | Path, *, family: str, recorded: bool = False
) -> ModelFacts:
    """Return what a model's configs say about it as one of ``family``.

    Args:
        recorded: Latents, noise and tokens are recorded: a VAE, a tokenizer and a scheduler's
            config need not be there.

    Raises:
        ModelError: Naming every missing or damaged file and every sign of another family.
    """
    spec = family_spec(family)
    sources = open_model(place, spec)
    base = sources.base
    _check_family(base, spec)
    unused = {"vae", "scheduler"} if recorded else set()
    unet, vae, scheduler = (
        {} if part in unused and not base.config_file(part).is_file() else base.config(part)
        for part in ("unet", "vae", "scheduler")
    )
    texts = [base.config(part) for part in spec.text_parts]
    for part in spec.weighted_parts:
        if part not in unused:
            sources.of(part).check_weights(part)
    facts = [_text_facts(text) for text in texts]
    if _check_unet(base, unet, vae) and all(texts):
        _check_conditioning(base, unet, facts, spec)
    _check_vae(base, vae)
    if sources.vae is not base:
        other = sources.vae.config("vae")
        _check_vae(sources.vae, other)
        _check_same_latents(sources.vae, other, vae)
    for layout, text, found in zip(spec.text, texts, facts, strict=True):
        if not reads_no_text(layout, recorded=recorded):
            base.check_tokenizer(layout, found.vocab_size if text else None)
    _check_scheduler(base, scheduler)
    base.raise_problems()
    return _facts(family, unet, {**VAE_DEFAULTS, **vae}, tuple(facts), scheduler)


def reads_no_text(layout: TextLayout, *, recorded: bool) -> bool:
    """Tell whether no tokenizer is needed: tokens are recorded, and no end token is looked for."""
    return recorded and not layout.pooled


def _facts(
    family: str,
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    text: tuple[TextFacts, ...],
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
        text=text,
        native_resolution=unet["sample_size"] * vae_factor,
        latent_scale=float(vae["scaling_factor"]),
        schedule_config={**scheduler, "prediction_type": prediction_type},
        # Configs of 2022 leave it out and mean epsilon; SD2 came with both kinds.
        says_prediction_type="prediction_type" in scheduler or family != "sd2",
    )


def _text_facts(config: Mapping[str, Any]) -> TextFacts:
    values = {**TEXT_DEFAULTS, **config}
    return TextFacts(
        width=values["hidden_size"],
        projection_width=values["projection_dim"],
        num_layers=values["num_hidden_layers"],
        row_length=values["max_position_embeddings"],
        vocab_size=values["vocab_size"],
    )


def _check_family(base: PartSource, spec: FamilySpec) -> None:
    """Stop at a model of another family: what else is wrong with it is then beside the point."""
    found = base.family()
    if found is not None and found != spec.name:
        base.report(
            f"{KEY} is {base.path}, laid out like {found}, but model.family is {spec.name}; "
            f"set model.family={found}, or give a model of family {spec.name}."
        )
        base.raise_problems()


def _check_unet(source: PartSource, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> bool:
    """Report what is wrong with the UNet alone; return whether its fields can be read."""
    file = source.config_file("unet")
    if not unet or not _has_fields(
        source, file, unet, in_channels=int, cross_attention_dim=int, sample_size=int,
        down_block_types=list,
    ):  # fmt: skip
        return False
    if unet.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        source.report(f"{file} is for {unet['_class_name']}; only UNet2DConditionModel is known.")
    channels = {**VAE_DEFAULTS, **vae}["latent_channels"]
    if vae and unet["in_channels"] != channels:
        source.report(
            f"{file} has in_channels {unet['in_channels']}, but the VAE makes {channels} latent "
            "channels; inpainting and depth models cannot be trained."
        )
    return True


def _check_conditioning(
    source: PartSource, unet: Mapping[str, Any], texts: Sequence[TextFacts], spec: FamilySpec
) -> None:
    """Compare the widths that the UNet reads with those that the text encoders make."""
    file, same = source.config_file("unet"), "the two must come from the same model."
    width = sum(text.width for text in texts)
    name = "hidden_size" if len(texts) == 1 else "hidden_size together"
    encoder = "text encoder's" if len(texts) == 1 else "text encoders'"
    if unet["cross_attention_dim"] != width:
        source.report(
            f"{file} has cross_attention_dim {unet['cross_attention_dim']}, but the {encoder} "
            f"{name} is {width}; {same}"
        )
    if not spec.reads_sizes or not _has_fields(
        source, file, unet, addition_time_embed_dim=int, projection_class_embeddings_input_dim=int
    ):
        return
    found, sizes = (
        unet["projection_class_embeddings_input_dim"],
        6 * unet["addition_time_embed_dim"],
    )
    if sizes + (pooled := texts[-1].projection_width) != found:
        source.report(
            f"{file} has projection_class_embeddings_input_dim {found}, but the pooled text is "
            f"{pooled} wide and six sizes are {sizes}; a refiner or a mixture of models cannot be "
            "trained."
        )


def _check_vae(source: PartSource, vae: Mapping[str, Any]) -> None:
    file = source.config_file("vae")
    if not vae or not _has_fields(source, file, vae, block_out_channels=list):
        return
    if vae.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        source.report(f"{file} is for {vae['_class_name']}; only AutoencoderKL is known.")
    if vae.get("shift_factor") is not None:
        source.report(
            f"{file} has shift_factor {vae['shift_factor']}, which belongs to later families; "
            "give the VAE of the same model."
        )


def _check_same_latents(
    source: PartSource, other: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    """Compare another VAE with the base's own: the UNet was trained on latents of that one."""
    found, wanted = (
        (len(vae.get("block_out_channels", ())), {**VAE_DEFAULTS, **vae}["latent_channels"])
        for vae in (other, own)
    )
    if other and own and found != wanted:
        source.report(
            f"{source.key} is {source.path}, whose latents have {found[1]} channels on "
            f"{found[0]} levels, but the base was made with {wanted[1]} channels on {wanted[0]} "
            "levels; give a VAE of the same family."
        )


def _check_scheduler(source: PartSource, scheduler: Mapping[str, Any]) -> None:
    file = source.config_file("scheduler")
    found = scheduler.get("prediction_type", "epsilon")
    if found not in PREDICTION_TYPES:
        source.report(
            f"{file} has prediction_type {json.dumps(found)}; allowed are "
            f"{', '.join(PREDICTION_TYPES)}."
        )


def _has_fields(source: PartSource, file: Path, config: Mapping[str, Any], **kinds: type) -> bool:
    wrong = [name for name, kind in kinds.items() if not isinstance(config.get(name), kind)]
    for name in wrong:
        source.report(
            f"{file} has {name} {json.dumps(config.get(name))}; "
            f"{'a whole number' if kinds[name] is int else 'a list'} is needed."
        )
    return not wrong

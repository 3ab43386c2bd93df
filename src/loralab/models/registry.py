"""The one way to a loaded model. Importing this does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loralab.errors import ModelError, Problem
from loralab.models.facts import model_facts, reads_no_text
from loralab.models.family import ModelFacts, ModelFamily
from loralab.models.opening import open_model
from loralab.models.source import ModelPlace
from loralab.models.specs import SPECS, family_spec

if TYPE_CHECKING:
    import torch

__all__ = ["SPECS", "family_spec", "load_family"]

ATTENTION_KINDS = (
    "sdpa", "sdpa_flash", "sdpa_efficient", "sdpa_math", "eager", "sliced", "xformers"
)  # fmt: skip
WEIGHT_DTYPES = ("float32", "bfloat16", "float16")


def load_family(
    name: str,
    place: ModelPlace | str | Path,
    *,
    weight_dtype: torch.dtype | None = None,
    vae_dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    clip_skip: int | None = None,
    text_rows: int = 1,
    prompt_weights: bool = False,
    fixed_sizes: Sequence[int] | None = None,
    gradient_checkpointing: bool = False,
    attention: str = "sdpa",
    recorded: bool = False,
) -> ModelFamily:
    """Load a base model, frozen and in eval mode, every weight straight to its dtype and device.

    Args:
        place: Where it is: a folder in diffusers' layout, a checkpoint file, or more of it.
        weight_dtype: Of the frozen UNet and text encoders; float32 when None.
        vae_dtype: Of the VAE, which overflows in float16; float32 when None.
        clip_skip: 1 takes a text encoder's last layer, 2 the one before, and so on; None the one
            that the family was made with.
        text_rows: Rows of 75 tokens that a caption is cut or padded to.
        prompt_weights: Read weights of words in captions.
        fixed_sizes: (6,) sizes told to the UNet for every picture, in families that read them.
        gradient_checkpointing: Recompute activations in backward; active only in train mode.
        attention: A backend of ``attention.py``; it is tried before anything else happens.
        recorded: Latents and tokens are recorded, as in `model_facts`.

    Raises:
        ModelError: With every problem of the files and of the options.
    """
    import torch

    from loralab.models import components
    from loralab.models.attention import set_attention
    from loralab.models.codec import LatentCodec
    from loralab.models.conditioning import ClipConditioner
    from loralab.models.denoiser import Denoiser
    from loralab.models.text_encoder import ClipEncoder

    spec = family_spec(name)
    facts, sources = model_facts(place, family=name, recorded=recorded), open_model(place, spec)
    dtype = torch.float32 if weight_dtype is None else weight_dtype
    clip_skip = spec.clip_skip if clip_skip is None else clip_skip
    problems = _option_problems(facts, dtype, clip_skip, text_rows, attention)
    if problems:
        raise ModelError(*problems)
    encoders = [
        ClipEncoder(
            None
            if reads_no_text(layout, recorded=recorded)
            else components.load_tokenizer(sources, layout, vocab_size=text.vocab_size),
            components.load_text_encoder(sources, layout, dtype=dtype, device=device),
            layer=clip_skip,
            final_norm=layout.final_norm,
            pooled=layout.pooled,
            rows=text_rows,
            prompt_weights=prompt_weights,
        )
        for layout, text in zip(spec.text, facts.text, strict=True)
    ]
    unet = components.load_unet(sources, dtype=dtype, device=device)
    models = [encoder.model for encoder in encoders]
    set_attention(attention, unet=unet, text_encoders=models, dtype=dtype, device=device)
    if gradient_checkpointing:
        components.enable_checkpointing(unet=unet, text_encoders=models)

    def load_codec() -> LatentCodec:
        vae = components.load_vae(sources, dtype=vae_dtype or torch.float32, device=device)
        return LatentCodec(vae, latent_scale=facts.latent_scale)

    return ModelFamily(
        spec=spec,
        facts=facts,
        denoiser=Denoiser(unet),
        conditioner=ClipConditioner(
            encoders, reads_sizes=spec.reads_sizes, fixed_sizes=fixed_sizes
        ),
        schedule_config=facts.schedule_config,
        latent_scale=facts.latent_scale,
        load_codec=load_codec,
    )


def _option_problems(
    facts: ModelFacts, dtype: torch.dtype, clip_skip: int, text_rows: int, attention: str
) -> list[Problem]:
    problems = []
    if str(dtype).removeprefix("torch.") not in WEIGHT_DTYPES:
        message = f"model.weight_dtype is {dtype}; allowed are {', '.join(WEIGHT_DTYPES)}."
        problems.append(Problem("model.weight_dtype", message))
    if not 1 <= clip_skip <= facts.num_text_layers:
        message = (
            f"model.clip_skip is {clip_skip}; this text encoder has "
            f"{facts.num_text_layers} layers, so it must be between 1 and {facts.num_text_layers}."
        )
        problems.append(Problem("model.clip_skip", message))
    if text_rows < 1:
        problems.append(Problem("model.max_tokens", "model.max_tokens must be above 0."))
    if attention not in ATTENTION_KINDS:
        message = f"model.attention is {attention}; allowed are {', '.join(ATTENTION_KINDS)}."
        problems.append(Problem("model.attention", message))
    return problems

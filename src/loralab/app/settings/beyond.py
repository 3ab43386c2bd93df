"""Options of sd-scripts beyond the 65 settings -> our configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loralab.app.settings.network import translate_module
from loralab.app.settings.optimizers import translate_optimizer
from loralab.app.settings.original import Format, Verdict
from loralab.app.settings.plan import OFF, Plan

# Option -> our key, where the value needs no other words. What is off is not put.
SAME = {
    "noise_offset": "objective.noise_offset",
    "noise_offset_random_strength": "objective.noise_offset_random",
    "adaptive_noise_scale": "objective.noise_offset_adaptive",
    "multires_noise_iterations": "objective.multires_iterations",
    "ip_noise_gamma": "objective.input_perturbation",
    "ip_noise_gamma_random_strength": "objective.input_perturbation_random",
    "min_timestep": "objective.min_timestep",
    "max_timestep": "objective.max_timestep",
    "loss_type": "objective.loss",
    "save_every_n_steps": "export.every_n_steps",
    "save_last_n_epochs": "export.keep_last",
    "sample_every_n_steps": "preview.every_n_steps",
    "caption_prefix": "data.captions.prefix",
    "caption_suffix": "data.captions.suffix",
    "caption_separator": "data.captions.separator",
    "keep_tokens_separator": "data.captions.keep_tags_separator",
    "secondary_separator": "data.captions.secondary_separator",
    "enable_wildcard": "data.captions.wildcards",
    "weighted_captions": "model.prompt_weights",
    "dim_from_weights": "adapter.rank_from_file",
    "validation_split": "validation.fraction",
    "validation_seed": "validation.seed",
    "validate_every_n_steps": "validation.every_n_steps",
    "debug_dataset": "check_only",
    "rank_dropout": "adapter.rank_dropout",
    "module_dropout": "adapter.module_dropout",
    "loraplus_lr_ratio": "adapter.lora_plus_ratio",
    "loraplus_unet_lr_ratio": "adapter.unet.lora_plus_ratio",
    "loraplus_text_encoder_lr_ratio": "adapter.text_encoder.lora_plus_ratio",
    "block_lr_zero_threshold": "adapter.blocks.lr_zero_threshold",
    "constraint": "adapter.constraint",
    "metadata_title": "export.modelspec.title",
    "metadata_author": "export.modelspec.author",
    "metadata_description": "export.modelspec.description",
    "metadata_license": "export.modelspec.license",
}
# Of options that need more than another name, the key that comes nearest; for `loralab describe`.
NEAREST = {
    "min_snr_gamma": "objective.min_snr_gamma",
    "v_pred_like_loss": "objective.v_like_scale",
    "huber_c": "objective.huber_c",
    "zero_terminal_snr": "objective.zero_terminal_snr",
    "multires_noise_discount": "objective.multires_discount",
    "masked_loss": "data.masks",
    "conditioning_data_dir": "data.mask_dir",
    "resize_interpolation": "data.resize_filter",
    "token_warmup_step": "data.captions.tag_warmup_steps",
    "token_warmup_min": "data.captions.tag_warmup_min",
    "max_grad_norm": "trainer.gradient_clip_val",
    "scale_weight_norms": "adapter.weight_norm.max",
    "network_dropout": "adapter.dropout",
    "network_module": "adapter.kind",
    "conv_dim": "adapter.conv_rank",
    "conv_alpha": "adapter.conv_alpha",
    "sample_prompts": "preview.prompts",
    "metadata_tags": "export.modelspec.tags",
    "cache_latents_to_disk": "data.latent_cache.storage",
}
# Why nothing here does the same; what is not named does not exist here either.
REASONS = {
    "cache_latents_to_disk": "latents are kept on disk in any case.",
    "cache_text_encoder_outputs": "what frozen text encoders say is kept in memory in any case.",
    "cache_text_encoder_outputs_to_disk": "what frozen text encoders say is kept in memory.",
    "vae_batch_size": "the cache is filled in batches of its own.",
    "sdpa": "model.attention=sdpa is the default.",
    "mem_eff_attn": "model.attention=sdpa takes as little memory.",
    "no_half_vae": "model.vae_dtype is fp32 by default.",
    "full_fp16": "adapter weights are float32 or bfloat16.",
    "full_bf16": "adapter.weight_dtype=bf16 is near; it rounds updates by chance.",
    "lowram": "weights are loaded where they are used.",
    "log_with": "logs are TensorBoard's, chosen by logger.",
    "sample_every_n_epochs": "previews count steps: preview.every_n_steps.",
    "sample_sampler": "previews have one sampler.",
    "skip_cache_check": "the cache checks itself.",
    "face_crop_aug_range": "crops follow no faces; data.augmentations=[crop_jitter] is near.",
    "base_weights": "`loralab merge` makes a base of them first.",
    "session_id": "every run has a number of its own.",
    "save_last_n_steps": "files are counted, not steps: export.keep_last.",
    "validate_every_n_epochs": "validation counts steps: validation.every_n_steps.",
    "lr_scheduler_args": "the options of scheduler are named one by one.",
    "lr_scheduler_type": "schedules are chosen by scheduler.",
    "in_json": "data.layout=metadata with data.metadata_file reads it.",
    "resume_from_huggingface": "runs are resumed from their folder: resume.",
    "train_norm": "norms have no adapter.",
}


def translate_beyond(plan: Plan) -> Plan:
    """Translate what is not among the 65 settings; the rest gets its reason."""
    parts = (
        translate_module,
        translate_optimizer,
        _files,
        _losses,
        _noise,
        _texts,
        _schedule_options,
        _previews,
    )
    for part in (_texts,) if plan.format is Format.dataset_toml else parts:
        part(plan)
    for name, key in SAME.items():
        value = plan.take(name)
        if value not in OFF:
            plan.put(key, value, name)
    for name, value in plan.left():
        text = REASONS.get(name, f"nothing here does the same as {name}={value}.")
        plan.note(Verdict.no_equivalent, name, text)
    return plan


def _files(plan: Plan) -> None:
    """Translate how many files are kept, and what they tell."""
    ratio, epochs = plan.take("save_n_epoch_ratio"), plan.values.get("trainer.max_epochs")
    if ratio and epochs:  # at least so many files of all epochs
        plan.put("export.every_n_epochs", max(1, int(epochs) // ratio), "save_n_epoch_ratio")
    elif ratio:
        plan.note(Verdict.no_equivalent, "save_n_epoch_ratio", "the number of epochs is not known; "
                  "set export.every_n_epochs.")  # fmt: skip
    if tags := plan.take("metadata_tags"):
        words = [word.strip() for word in tags.split(",") if word.strip()]
        plan.put("export.modelspec.tags", words, "metadata_tags")


def _losses(plan: Plan) -> None:
    weightings = [
        ("min_snr_gamma", "min_snr"),
        ("debiased_estimation_loss", "debiased"),
        ("scale_v_pred_loss_like_noise_pred", "scale_v_like_noise"),
        ("v_pred_like_loss", "v_like"),
    ]
    chosen = [(name, kind) for name, kind in weightings if plan.take(name) not in OFF]
    for place, (name, kind) in enumerate(chosen):
        if place:
            plan.note(Verdict.no_equivalent, name, f"stands beside {chosen[0][0]}; sd-scripts "
                      "multiplies both, here one weighting is chosen.")  # fmt: skip
            continue
        plan.put("objective.weighting", kind, name)
        if kind == "min_snr":
            plan.put("objective.min_snr_gamma", plan.settings[name], name)
        if kind == "v_like":
            plan.put("objective.v_like_scale", plan.settings[name], name)
    _huber(plan)
    if plan.take("zero_terminal_snr"):
        if plan.values.get("model.prediction_type") == "epsilon":
            plan.note(Verdict.mistake, "zero_terminal_snr", "needs a base that predicts the "
                      "velocity; sd-scripts warns, here it is refused and left out.")  # fmt: skip
        else:
            plan.put("objective.zero_terminal_snr", True, "zero_terminal_snr")
    if plan.take("masked_loss"):
        plan.put("data.masks", "file", "masked_loss")
        plan.put("data.mask_dir", plan.take("conditioning_data_dir"), "masked_loss")
    elif plan.take("alpha_mask"):
        plan.put("data.masks", "alpha", "alpha_mask")


def _huber(plan: Plan) -> None:
    """Set the threshold; sd-scripts reads its scale with the schedules other than snr alone."""
    threshold, scale = plan.take("huber_c"), plan.take("huber_scale") or 1.0
    schedule = plan.take("huber_schedule") or "snr"
    if plan.settings.get("loss_type") not in ("huber", "smooth_l1"):
        return  # the other losses have no threshold
    plan.put("objective.huber_schedule", schedule, "huber_schedule")
    if schedule == "exponential" and scale != 1.0:
        plan.note(Verdict.no_equivalent, "huber_scale", f"is {scale:g}; the exponential threshold "
                  "begins at 1 here.")  # fmt: skip
    if threshold or scale != 1.0:
        factor = scale if schedule == "constant" else 1.0
        plan.put("objective.huber_c", (threshold or 0.1) * factor, "huber_c")


def _noise(plan: Plan) -> None:
    discount = plan.take("multires_noise_discount")
    if discount and plan.settings.get("multires_noise_iterations"):
        plan.put("objective.multires_discount", discount, "multires_noise_discount")


def _texts(plan: Plan) -> None:
    if interpolation := plan.take("resize_interpolation"):
        if interpolation in ("area", "lanczos"):
            plan.put("data.resize_filter", interpolation, "resize_interpolation")
        else:
            plan.note(Verdict.no_equivalent, "resize_interpolation", f"{interpolation} is not a "
                      "filter here; data.resize_filter is lanczos or area.")  # fmt: skip
    steps, least = plan.take("token_warmup_step"), plan.take("token_warmup_min")
    if steps and steps < 1:
        total = plan.settings.get("max_steps")
        steps = steps * total if total else 0
        if not steps:
            plan.note(Verdict.no_equivalent, "token_warmup_step", "a share of the steps, whose "
                      "number is not known; set data.captions.tag_warmup_steps.")  # fmt: skip
    if steps:
        plan.put("data.captions.tag_warmup_steps", int(steps), "token_warmup_step")
        plan.put("data.captions.tag_warmup_min", least or 1, "token_warmup_min")
    share, total = plan.take("stop_text_encoder_training_pct"), plan.settings.get("max_steps")
    if share and 0 < share < 100 and total:
        plan.put("adapter.text_encoder.freeze_after_steps", int(share / 100 * total),
                 "stop_text_encoder_training_pct")  # fmt: skip
    elif share:
        text = "a share of the steps, whose number is not known; set freeze_after_steps."
        plan.note(Verdict.no_equivalent, "stop_text_encoder_training_pct", text)


def _schedule_options(plan: Plan) -> None:
    kind = plan.choices.get("scheduler")
    given: Mapping[str, tuple[str, str, Callable[[Any], Any]]] = {
        "cosine_with_min_lr": ("lr_scheduler_min_lr_ratio", "end_factor", float),
        "inverse_sqrt": ("lr_scheduler_timescale", "timescale", int),
        "warmup_stable_decay": ("lr_decay_steps", "decay_fraction", float),
    }
    if kind is not None and kind in given:
        name, key, cast = given[kind]
        value = plan.take(name)
        if value and not (key == "decay_fraction" and value >= 1):
            plan.put(f"scheduler.{key}", cast(value), name)


def _previews(plan: Plan) -> None:
    """Take the prompts of a prompt file, or of a form; a line's own options are told."""
    given = plan.take("sample_prompts")
    if not given:
        return
    if not plan.settings.get("sample_every_n_steps"):
        plan.note(Verdict.no_equivalent, "sample_prompts", "previews count steps: set "
                  "preview.prompts and preview.every_n_steps.")  # fmt: skip
        return
    text = given if plan.format is Format.gui else _read(Path(given))
    if text is None:
        plan.note(Verdict.no_equivalent, "sample_prompts", f"{given} cannot be read as a text; set "
                  "preview.prompts.")  # fmt: skip
        return
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if any(" --" in line for line in lines):
        plan.note(Verdict.no_equivalent, "sample_prompts", "sizes, seeds and so on of single "
                  "lines are left out; preview has them for all lines alike.")  # fmt: skip
    plan.put("preview.prompts", [line.partition(" --")[0].strip() for line in lines],
             "sample_prompts")  # fmt: skip


def _read(place: Path) -> str | None:
    try:
        return place.read_text(encoding="utf-8") if place.suffix == ".txt" else None
    except (OSError, UnicodeDecodeError):
        return None

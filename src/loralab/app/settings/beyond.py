"""Options of sd-scripts beyond the 65 settings -> our configuration."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loralab.app.settings.forward import recipe
from loralab.app.settings.original import Format, Verdict
from loralab.app.settings.plan import OFF, Plan
from loralab.app.settings.vocabulary import OPTIMIZERS
from loralab.config.parse import nearest

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
    "conv_dim": "adapter.conv_rank",
    "conv_alpha": "adapter.conv_alpha",
    "rank_dropout": "adapter.rank_dropout",
    "module_dropout": "adapter.module_dropout",
    "loraplus_lr_ratio": "adapter.lora_plus_ratio",
    "loraplus_unet_lr_ratio": "adapter.unet.lora_plus_ratio",
    "loraplus_text_encoder_lr_ratio": "adapter.text_encoder.lora_plus_ratio",
    "block_lr_zero_threshold": "adapter.blocks.lr_zero_threshold",
}
BLOCK_LISTS = {
    "block_dims": ("adapter.blocks.ranks", int),
    "block_alphas": ("adapter.blocks.alphas", float),
    "conv_block_dims": ("adapter.blocks.conv_ranks", int),
    "conv_block_alphas": ("adapter.blocks.conv_alphas", float),
    "down_lr_weight": ("adapter.blocks.down_lr_scales", str),
    "mid_lr_weight": ("adapter.blocks.mid_lr_scales", str),
    "up_lr_weight": ("adapter.blocks.up_lr_scales", str),
}
ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr", "dylora": "dylora",
              "diag-oft": "oft", "boft": "boft"}  # fmt: skip
# Why nothing here does the same; what is not named does not exist here either.
REASONS = {
    "cache_latents_to_disk": "latents are kept on disk in any case.",
    "cache_text_encoder_outputs": "what frozen text encoders say is kept in memory in any case.",
    "cache_text_encoder_outputs_to_disk": "what frozen text encoders say is kept in memory.",
    "vae_batch_size": "the cache is filled in batches of its own.",
    "sdpa": "model.attention=sdpa is the default.",
    "mem_eff_attn": "model.attention=sdpa takes as little memory.",
    "no_half_vae": "model.vae_dtype is fp32 by default.",
    "full_fp16": "adapter weights are always float32.",
    "full_bf16": "adapter weights are always float32.",
    "lowram": "weights are loaded where they are used.",
    "log_with": "logs are TensorBoard's, chosen by logger.",
    "sample_every_n_epochs": "previews count steps: preview.every_n_steps.",
    "sample_sampler": "previews have one sampler.",
    "skip_cache_check": "the cache checks itself.",
    "face_crop_aug_range": "crops follow no faces; data.augmentations=[crop_jitter] is near.",
    "save_n_epoch_ratio": "export.every_n_epochs says it directly.",
    "base_weights": "`loralab merge` makes a base of them first.",
    "session_id": "every run has a number of its own.",
}


def translate_beyond(plan: Plan) -> Plan:
    """Translate what is not among the 65 settings; the rest gets its reason."""
    parts = (_module, _optimizer, _losses, _noise, _texts, _schedule_options, _previews)
    for part in (_texts,) if plan.format is Format.dataset_toml else parts:
        part(plan)
    for name, key in SAME.items():
        value = plan.take(name)
        if value not in OFF:
            plan.put(key, _literal(value), name)
    for name, value in plan.left():
        text = REASONS.get(name, f"nothing here does the same as {name}={value}.")
        plan.note(Verdict.no_equivalent, name, text)
    return plan


def _module(plan: Plan) -> None:
    """Translate the network module and its arguments."""
    _spread(plan, "network_args")
    module, algorithm = plan.take("network_module", "networks.lora"), plan.take("algo")
    if module == "lycoris.kohya":
        kind = ALGORITHMS.get(str(algorithm or "lora"))
    else:
        kind = {"networks.dylora": "dylora", "networks.oft": "oft"}.get(module, "lora")
        if module not in ("networks.lora", "locon.locon_kohya", "networks.dylora", "networks.oft"):
            kind = None
    if kind is None:
        name = "algo" if module == "lycoris.kohya" else "network_module"
        plan.note(Verdict.no_equivalent, name, f"{algorithm or module} is no adapter kind here.")
        plan.given.discard("conv_dim")
        kind = "lora"
    if _literal(plan.take("dora_wd")) is True:
        kind = "dora"
    if kind != "lora":
        plan.choose("adapter", kind, "network_module")
    if int(float(plan.settings.get("conv_dim") or 0)) > 1 or (kind != "lora" and algorithm):
        plan.put("adapter.unet.targets", ["full"], "conv_dim")
    if dropout := plan.take("network_dropout") or _literal(plan.take("dropout")):
        plan.put("adapter.dropout", float(dropout), "network_dropout")
        if kind == "lora":
            plan.put("adapter.dropout_place", "inner", "network_dropout")
    if kind == "lokr":
        for name, key in (("factor", "decompose_factor"), ("decompose_both", "decompose_both")):
            if (value := plan.take(name)) not in OFF:
                plan.put(f"adapter.{key}", _literal(value), name)
    if limit := plan.take("scale_weight_norms"):
        plan.put("adapter.weight_norm.type", "frobenius", "scale_weight_norms")
        plan.put("adapter.weight_norm.max", limit, "scale_weight_norms")
    for name, (key, cast) in BLOCK_LISTS.items():
        if text := plan.take(name):
            plan.put(key, [cast(word) for word in str(text).split(",") if word.strip()], name)
    for name in ("conv_dim", "conv_alpha"):  # kohya_ss always gives 1, without convolutions
        if "adapter.unet.targets" in plan.values and plan.values["adapter.unet.targets"] != [
            "full"
        ]:
            plan.taken.add(name)
            plan.settings.pop(name, None)


def _optimizer(plan: Plan) -> None:
    word = plan.take("optimizer_type")
    word = str(word).partition("(")[0].rpartition(".")[2] if word else None
    if plan.take("use_lion_optimizer"):
        word = "Lion"
    if word and word.lower() != "adamw":
        if option := recipe(word):
            plan.choose("optimizer", option, "optimizer_type")
        elif word.lower() in map(str.lower, OPTIMIZERS) or "." in str(plan.take("optimizer_type")):
            plan.note(Verdict.no_equivalent, "optimizer_type", f"there is no recipe of {word}.")
        else:
            plan.note(Verdict.mistake, "optimizer_type", f"is {word}, which that program does not "
                      f"know. {nearest(word, OPTIMIZERS)}")  # fmt: skip
    for name, value in _pairs(plan.take("optimizer_args") or []).items():
        plan.put(f"optimizer.{name}", value, "optimizer_args")
    clip = plan.take("max_grad_norm")
    if clip is not None:
        plan.put("trainer.gradient_clip_val", clip or None, "max_grad_norm")


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
    """Take the prompts of a prompt file, where it is there to be read."""
    place = plan.take("sample_prompts")
    if not place or not plan.settings.get("sample_every_n_steps"):
        return
    file = Path(str(place))
    if not file.is_file() or file.suffix != ".txt":
        plan.note(Verdict.no_equivalent, "sample_prompts", f"{place} cannot be read; set "
                  "preview.prompts.")  # fmt: skip
        return
    lines = file.read_text(encoding="utf-8").splitlines()
    prompts = [line.partition(" --")[0].strip() for line in lines if not line.startswith("#")]
    plan.put("preview.prompts", [prompt for prompt in prompts if prompt], "sample_prompts")


def _spread(plan: Plan, name: str) -> None:
    """Make arguments written NAME=VALUE settings of their own."""
    for argument, value in _pairs(plan.take(name) or []).items():
        plan.settings.setdefault(argument, value)
        plan.given.add(argument)


def _pairs(texts: list[str]) -> dict[str, Any]:
    pairs = (text.partition("=") for text in texts)
    return {name: _literal(value) for name, _, value in pairs}


def _literal(value: Any) -> Any:
    """Return the number or flag that a text spells, else the text."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(value.lower(), value)

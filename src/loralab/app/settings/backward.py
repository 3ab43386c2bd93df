"""Our configuration -> the 65 settings, in the guide's order."""

from __future__ import annotations

from typing import Any

from loralab.app.settings.forward import translate
from loralab.app.settings.original import Format
from loralab.app.settings.plan import Plan, as_passed_on
from loralab.config.choices import AugmentationKind, MetadataAmount, PredictionType
from loralab.config.records import RunConfig
from loralab.config.settings_table import settings

_PRECISIONS = {"32-true": "no", "32": "no", "16-mixed": "fp16", "bf16-mixed": "bf16"}


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return the 65 settings of a run.

    What another program said in other words (`compat.kept_settings`) is said in these words again
    as long as it means the same.
    """
    found = {**_job(config), **_training(config), **_images(config), **_base(config)}
    found = {name: found[name] for name in settings()}
    for name, value in config.compat.kept_settings.items():
        if _meaning({**found, name: value}) == _meaning(found):
            found[name] = value
    return found


def _meaning(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    plan = translate(Plan(as_passed_on(values, Format.launcher), Format.launcher, set()))
    return plan.values, plan.choices


def _job(config: RunConfig) -> dict[str, Any]:
    export, logs = config.export, config.logger.kind.name != "none"
    return {
        "output_folder": config.output_dir,
        "change_output_name": config.name,
        "save_json_folder": None,
        "load_json_path": None,
        "json_load_skip_list": None,
        "multi_run_folder": None,
        "save_json_only": config.check_only,
        "lora_model_for_resume": config.adapter.init_from,
        "save_state": (config.callbacks.get("checkpoint") or {}).get("keep_last", 2) is None,
        "load_previous_save_state": config.resume,
        "training_comment": export.comment or None,
        "save_every_n_epochs": export.every_n_epochs,
        "save_precision": {"fp32": "float"}.get(export.precision.name, export.precision.name),
        "save_as": export.container.name,
        "no_meta": export.metadata is not MetadataAmount.full,
        "log_dir": config.output_dir if logs else None,
    }


def _training(config: RunConfig) -> dict[str, Any]:
    adapter, trainer, schedule = config.adapter, config.trainer, config.scheduler
    steps, precision = trainer.get("max_steps") or -1, str(trainer.get("precision", "32-true"))
    warmup = schedule.warmup_fraction or (
        schedule.warmup_steps / steps if schedule.warmup_steps and steps > 0 else None
    )
    return {
        "net_dim": adapter.rank,
        "alpha": adapter.alpha,
        "unet_only": not adapter.text_encoder.enabled,
        "text_only": not adapter.unet.enabled,
        "scheduler": schedule.kind.name,
        "cosine_restarts": schedule.num_cycles or 1,
        "scheduler_power": schedule.power or 1.0,
        "warmup_lr_ratio": warmup,
        "learning_rate": config.optimizer.get("lr"),
        "text_encoder_lr": _rate(config, "text_encoder"),
        "unet_lr": _rate(config, "unet"),
        "num_epochs": trainer.get("max_epochs") or 1,
        "max_steps": steps if steps > 0 else None,
        "test_seed": config.seed,
        "gradient_acc_steps": trainer.get("accumulate_grad_batches", 1),
        "mixed_precision": _PRECISIONS.get(precision, precision),
        "use_8bit_adam": str(config.optimizer.get("_target_", "")).endswith(".AdamW8bit"),
    }


def _rate(config: RunConfig, part: str) -> float | None:
    """Return a part's rate; None where it is the optimizer's."""
    record = getattr(config.adapter, part)
    if record.lr is not None or record.lr_scale == 1:
        return record.lr  # type: ignore[no-any-return]
    return float(record.lr_scale * config.optimizer.get("lr", 0.0))


def _images(config: RunConfig) -> dict[str, Any]:
    data, buckets, captions = config.data, config.data.buckets, config.data.captions
    changes = set(data.augmentations)
    in_one = buckets.sizes[0] if len(buckets.sizes) == 1 else None  # no buckets, one shape
    return {
        "img_folder": data.image_dir,
        "reg_img_folder": data.prior.image_dir,
        "prior_loss_weight": data.prior.weight,
        "caption_dropout_rate": captions.caption_dropout or None,
        "caption_dropout_every_n_epochs": captions.caption_dropout_every_n_epochs,
        "caption_tag_dropout_rate": captions.tag_dropout or None,
        "num_workers": data.num_workers,
        "persistent_workers": data.persistent_workers,
        "batch_size": data.batch_size,
        "shuffle_captions": captions.shuffle_tags,
        "keep_tokens": captions.keep_tags or None,
        "tag_occurrence_txt_file": captions.tag_occurrence_file,
        "sort_tag_occurrence_alphabetically": captions.tag_occurrence_order.name == "name",
        "train_resolution": in_one.replace("x", ",") if in_one else data.resolution,
        "min_bucket_resolution": buckets.min_side,
        "max_bucket_resolution": buckets.max_side,
        "caption_extension": data.caption_extension,
        "buckets": buckets.enabled and not in_one,
        "cache_latents": data.latent_cache.enabled,
        "color_aug": AugmentationKind.color in changes,
        "flip_aug": AugmentationKind.flip in changes or data.flip_probability > 0,
        "random_crop": AugmentationKind.random_crop in changes,
        "bucket_reso_steps": buckets.step,
        "bucket_no_upscale": buckets.no_upscale,
    }


def _base(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "base_model": model.path,
        "clip_skip": model.clip_skip,
        "gradient_checkpointing": model.gradient_checkpointing,
        "max_clip_token_length": model.max_tokens,
        "xformers": model.attention.name == "xformers",
        "vae": model.vae_path,
        "v2": model.family.name == "sd2",
        "v_parameterization": model.prediction_type is PredictionType.v_prediction,
    }

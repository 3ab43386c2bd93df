"""The words of sd-scripts' `train_network.py` and of the programs that call it.

A setting goes by its name in the guide (`net_dim`) where it is one of the 65, else by that of
sd-scripts (`min_snr_gamma`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from loralab.config.settings_table import settings

_KINDS = {
    "flag": """
        v2 v_parameterization use_8bit_adam use_lion_optimizer fused_backward_pass async_upload
        save_state_to_huggingface resume_from_huggingface save_state save_state_on_train_end
        mem_eff_attn torch_compile xformers sdpa persistent_data_loader_workers
        gradient_checkpointing full_fp16 full_bf16 fp8_base fp8_base_unet log_config
        noise_offset_random_strength ip_noise_gamma_random_strength zero_terminal_snr lowram
        highvram sample_at_first masked_loss cache_info shuffle_caption enable_wildcard color_aug
        flip_aug random_crop debug_dataset cache_latents cache_latents_to_disk skip_cache_check
        enable_bucket bucket_no_upscale alpha_mask scale_v_pred_loss_like_noise_pred
        debiased_estimation_loss weighted_captions cpu_offload_checkpointing no_metadata
        network_train_unet_only network_train_text_encoder_only dim_from_weights no_half_vae
        skip_until_initial_step cache_text_encoder_outputs cache_text_encoder_outputs_to_disk
        disable_mmap_load_safetensors sdxl output_config deepspeed use_wandb
        ddp_gradient_as_bucket_view ddp_static_graph console_log_simple""",
    "whole": """
        lr_decay_steps lr_scheduler_num_cycles lr_scheduler_timescale save_every_n_epochs
        save_every_n_steps save_n_epoch_ratio save_last_n_epochs save_last_n_epochs_state
        save_last_n_steps save_last_n_steps_state train_batch_size max_token_length
        max_train_steps max_train_epochs max_data_loader_n_workers seed
        gradient_accumulation_steps ddp_timeout clip_skip multires_noise_iterations min_timestep
        max_timestep sample_every_n_steps sample_every_n_epochs keep_tokens vae_batch_size
        min_bucket_reso max_bucket_reso bucket_reso_steps token_warmup_min dataset_repeats
        caption_dropout_every_n_epochs network_dim initial_epoch initial_step validation_seed
        validate_every_n_steps validate_every_n_epochs max_validation_steps""",
    "number": """
        learning_rate max_grad_norm lr_warmup_steps lr_scheduler_power lr_scheduler_min_lr_ratio
        noise_offset ip_noise_gamma multires_noise_discount adaptive_noise_scale huber_c
        huber_scale prior_loss_weight token_warmup_step caption_dropout_rate
        caption_tag_dropout_rate min_snr_gamma v_pred_like_loss unet_lr text_encoder_lr
        network_alpha network_dropout scale_weight_norms validation_split
        stop_text_encoder_training_pct""",
    "text": """
        pretrained_model_name_or_path tokenizer_cache_dir optimizer_type lr_scheduler_type
        lr_scheduler output_dir output_name huggingface_repo_id huggingface_repo_type
        huggingface_path_in_repo huggingface_token huggingface_repo_visibility save_precision
        resume dynamo_backend vae mixed_precision logging_dir log_with log_prefix
        log_tracker_name wandb_run_name log_tracker_config wandb_api_key loss_type huber_schedule
        sample_prompts sample_sampler config_file metadata_title metadata_author
        metadata_description metadata_license metadata_tags conditioning_data_dir train_data_dir
        caption_separator caption_extension keep_tokens_separator secondary_separator
        caption_prefix caption_suffix face_crop_aug_range resolution resize_interpolation
        dataset_class reg_data_dir in_json dataset_config save_model_as network_weights
        network_module training_comment console_log_level console_log_file""",
    "list": "optimizer_args lr_scheduler_args network_args base_weights base_weights_multiplier",
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "scheduler": ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
                  "constant_with_warmup", "inverse_sqrt", "cosine_with_min_lr",
                  "warmup_stable_decay", "piecewise_constant", "adafactor"),
    "mixed_precision": ("no", "fp16", "bf16"),
    "save_precision": ("float", "fp16", "bf16"),
    "save_as": ("safetensors", "ckpt", "pt"),
    "max_clip_token_length": (75, 150, 225),
    "loss_type": ("l2", "l1", "huber", "smooth_l1"),
    "huber_schedule": ("snr", "constant", "exponential"),
    "log_with": ("tensorboard", "wandb", "all"),
}  # fmt: skip

# Words of `optimizer_type`, in any case of letters; a path like package.Class is taken too.
OPTIMIZERS = (
    "AdamW", "AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit", "Lion", "Lion8bit",
    "PagedLion8bit", "SGDNesterov", "SGDNesterov8bit", "DAdaptation", "DAdaptAdamPreprint",
    "DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptAdanIP", "DAdaptLion", "DAdaptSGD",
    "Prodigy", "AdaFactor", "RAdamScheduleFree", "AdamWScheduleFree", "SGDScheduleFree",
)  # fmt: skip

# What kohya_ss' forms call an option of sd-scripts, or of its network module.
GUI_NAMES = {
    "epoch": "max_train_epochs", "max_resolution": "resolution", "optimizer": "optimizer_type",
    "lora_network_weights": "network_weights", "sdxl_no_half_vae": "no_half_vae",
    "sdxl_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "stop_text_encoder_training": "stop_text_encoder_training_pct",
    "save_at_n_epochs": "save_every_n_epochs", "LyCORIS_preset": "preset",
    "constrain": "constraint",
}  # fmt: skip
NETWORK_ARGS = (
    "conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "block_dims", "block_alphas",
    "conv_block_dims", "conv_block_alphas", "down_lr_weight", "mid_lr_weight", "up_lr_weight",
    "block_lr_zero_threshold", "loraplus_lr_ratio", "loraplus_unet_lr_ratio",
    "loraplus_text_encoder_lr_ratio", "algo", "preset", "factor", "decompose_both", "use_cp",
    "use_tucker", "dora_wd", "constraint", "dropout", "train_norm", "rank_dropout_scale", "unit",
    "block_size", "use_scalar", "rescaled", "bypass_mode", "full_matrix",
)  # fmt: skip
GUI_ONLY = (
    "LoRA_type", "additional_parameters", "noise_offset_type", "model_list",
    "num_cpu_threads_per_process", "train_on_input", "conv_alphas", "conv_dims",
    "num_processes", "num_machines", "multi_gpu", "gpu_ids", "extra_accelerate_launch_args",
    "main_process_port", "dynamo_mode", "dynamo_use_dynamic", "dynamo_use_fullgraph",
    "lora_network_weights_file", "loraplus", "metadata_thumbnail", "no_token_padding",
)  # fmt: skip

# What the programs take for a setting that a file does not give.
WRAPPER_DEFAULTS: dict[str, Any] = {
    "caption_dropout_rate": None, "net_dim": 128, "alpha": 64.0,
    "scheduler": "cosine_with_restarts", "cosine_restarts": 1, "scheduler_power": 1.0,
    "learning_rate": 1e-4, "num_workers": 1, "persistent_workers": True, "batch_size": 1,
    "num_epochs": 1, "save_every_n_epochs": 1, "shuffle_captions": False,
    "tag_occurrence_txt_file": True, "sort_tag_occurrence_alphabetically": False,
    "train_resolution": 512, "min_bucket_resolution": 320, "max_bucket_resolution": 960,
    "save_state": False, "unet_only": False, "text_only": False, "clip_skip": 2, "test_seed": 23,
    "prior_loss_weight": 1.0, "gradient_checkpointing": False, "mixed_precision": "fp16",
    "save_precision": "fp16", "save_as": "safetensors", "caption_extension": ".txt",
    "max_clip_token_length": 150, "buckets": True, "xformers": True, "use_8bit_adam": True,
    "cache_latents": True, "color_aug": False, "flip_aug": False, "random_crop": False,
    "no_meta": False, "bucket_no_upscale": False, "v2": False, "v_parameterization": False,
    "save_json_only": False,
}  # fmt: skip
SD_SCRIPTS_DEFAULTS: dict[str, Any] = WRAPPER_DEFAULTS | {
    "net_dim": 4, "alpha": 1.0, "scheduler": "constant", "learning_rate": 2e-6,
    "num_workers": None, "persistent_workers": None, "num_epochs": None, "max_steps": None,
    "save_every_n_epochs": None, "tag_occurrence_txt_file": False,
    "min_bucket_resolution": 256, "max_bucket_resolution": 1024, "clip_skip": None,
    "test_seed": None, "mixed_precision": "no", "save_precision": None,
    "caption_extension": ".caption", "max_clip_token_length": None, "buckets": False,
    "xformers": False, "use_8bit_adam": False, "cache_latents": False,
}  # fmt: skip
# Fields of a file's metadata that bear another name than the option they hold.
METADATA_NAMES = {
    "ss_batch_size_per_device": "train_batch_size", "ss_num_epochs": "max_train_epochs",
    "ss_optimizer": "optimizer_type", "ss_sd_model_name": "pretrained_model_name_or_path",
    "ss_vae_name": "vae", "ss_debiased_estimation": "debiased_estimation_loss",
}  # fmt: skip


@cache
def spelling() -> dict[str, str]:
    """Return the name that an option of sd-scripts goes by here, for those among the 65."""
    own = {row.sd_scripts: row.name for row in settings().values() if row.sd_scripts}
    del own["lr_warmup_steps"]  # steps, where the launcher's setting is a share of them
    return own | {"caption_extention": "caption_extension"}


@cache
def launcher_names() -> dict[str, str]:
    """Return the setting that each name in the launcher's JSON stands for."""
    own = {name: name for name in settings()}
    foreign = {name: spelling().get(option, option) for name, option in GUI_NAMES.items()}
    return {**foreign, **spelling(), **own, "num_cpu_threads_per_process": "num_workers",
            "lr_warmup": "warmup_lr_ratio"}  # fmt: skip


@cache
def option_names() -> dict[str, str]:
    """Return the setting that each option of sd-scripts stands for."""
    others = {name: name for name in kinds() if name not in settings()}
    return {**others, **{name: name for name in NETWORK_ARGS}, **spelling()}


@cache
def kinds() -> dict[str, str]:
    """Return what each setting takes: flag, whole, number, text or list."""
    by_option = {name: kind for kind, names in _KINDS.items() for name in names.split()}
    found = {spelling().get(name, name): kind for name, kind in by_option.items()}
    texts = ("save_json_folder", "load_json_path", "multi_run_folder")
    flags = ("save_json_only", "tag_occurrence_txt_file", "sort_tag_occurrence_alphabetically",
             "decompose_both", "use_cp", "use_tucker", "dora_wd", "train_norm",
             "rank_dropout_scale", "use_scalar", "rescaled", "bypass_mode",
             "full_matrix")  # fmt: skip
    wholes = ("conv_dim", "factor", "unit", "block_size")
    numbers = ("conv_alpha", "rank_dropout", "module_dropout", "dropout", "constraint",
               "block_lr_zero_threshold", "loraplus_lr_ratio", "loraplus_unet_lr_ratio",
               "loraplus_text_encoder_lr_ratio")  # fmt: skip
    return found | {
        **dict.fromkeys(texts, "text"),
        **dict.fromkeys(flags, "flag"),
        **dict.fromkeys(wholes, "whole"),
        **dict.fromkeys(numbers, "number"),
        "json_load_skip_list": "list",
        "warmup_lr_ratio": "number",
    }

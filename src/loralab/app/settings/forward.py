"""The 65 settings -> our configuration; what is beyond them is in `beyond.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loralab.app.settings.original import Format, Verdict
from loralab.app.settings.plan import Plan
from loralab.config.choices import Schedule

MODELS = {"sd1": "sd15", "sd2": "sd21", "sdxl": "sdxl"}
PRECISIONS = {"no": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}
FILE_PRECISIONS = {None: "fp32", "float": "fp32", "fp16": "fp16", "bf16": "bf16"}
END_RATE = 1e-7  # of polynomial in sd-scripts, whatever the rate was


def translate(plan: Plan) -> Plan:
    """Translate the 65 settings; a dataset's file speaks of images alone."""
    images = (_images, _sizes, _captions, _cache)
    others = (_model, _text, _network, _rates, _schedule, _length, _precision, _files, _states,
              _launcher)  # fmt: skip
    for part in images if plan.format is Format.dataset_toml else (*others, *images):
        part(plan)
    return plan


def family_of(plan: Plan) -> str:
    """Return sd1, sd2 or sdxl."""
    if plan.take("sdxl"):
        return "sdxl"
    return "sd2" if plan.take("v2") else "sd1"


def _model(plan: Plan) -> None:
    family = family_of(plan)
    plan.choose("model", MODELS[family], "sdxl" if family == "sdxl" else "v2")
    _same(plan, "base_model", "model.path")
    _same(plan, "vae", "model.vae_path", always=True)
    velocity = plan.take("v_parameterization")
    if velocity and plan.format is Format.launcher and family != "sd2":
        plan.note(Verdict.mistake, "v_parameterization", "was read by that program with v2 alone.")
        velocity = False
    if plan.has("v_parameterization"):
        kind = "v_prediction" if velocity else "epsilon"
        plan.put("model.prediction_type", kind, "v_parameterization")
    _same(plan, "gradient_checkpointing", "model.gradient_checkpointing")
    if plan.has("xformers"):
        plan.put("model.attention", "sdpa", "xformers")
        if plan.take("xformers"):
            plan.note(Verdict.mapped, "xformers", "is model.attention=sdpa here: as little memory, "
                      "and the same result within rounding.")  # fmt: skip


def _text(plan: Plan) -> None:
    skip = plan.take("clip_skip")
    if plan.choices["model"] != "sdxl":
        if plan.has("clip_skip"):
            plan.put("model.clip_skip", skip or 1, "clip_skip")
    elif skip:
        plan.note(Verdict.no_equivalent, "clip_skip", "SDXL has a layer of its own.")
    if plan.has("max_clip_token_length"):
        tokens = plan.take("max_clip_token_length") or 75
        plan.put("model.max_tokens", tokens, "max_clip_token_length")
        plan.put("model.caption_overflow", "truncate", "max_clip_token_length")


def _network(plan: Plan) -> None:
    rank = plan.take("net_dim")
    if rank:
        plan.put("adapter.rank", rank, "net_dim")
    if plan.has("alpha"):
        plan.put("adapter.alpha", float(plan.take("alpha") or rank or 1), "alpha")
    unet_only, text_only = plan.take("unet_only"), plan.take("text_only")
    if unet_only and text_only:
        plan.note(Verdict.mistake, "text_only", "stands beside unet_only, which leaves nothing to "
                  "train in sd-scripts; the launcher read unet_only.")  # fmt: skip
        text_only = False
    if plan.has("unet_only", "text_only"):
        plan.put("adapter.text_encoder.enabled", not unet_only, "unet_only")
        plan.put("adapter.unet.enabled", not text_only, "text_only")
    if rank:
        for part in ("unet", "text_encoder"):
            plan.put(f"adapter.{part}.targets", ["sd_scripts"], "net_dim")
    _same(plan, "lora_model_for_resume", "adapter.init_from", always=True)


def _rates(plan: Plan) -> None:
    rate = plan.take("learning_rate")
    if plan.format is Format.launcher and not rate and plan.has("learning_rate"):
        plan.note(Verdict.mistake, "learning_rate", "is 0, which that program took for not given.")
        rate = 2e-6
    if rate is not None:
        plan.put("optimizer.lr", rate, "learning_rate")
    for name, part in (("unet_lr", "unet"), ("text_encoder_lr", "text_encoder")):
        own = plan.take(name)
        if own == 0 and plan.format is Format.launcher:
            plan.note(Verdict.mistake, name, "is 0, which that program took for not given.")
            own = None
        if plan.format is not Format.metadata or own is not None:
            plan.put(f"adapter.{part}.lr", own, name)
        plan.put(f"adapter.{part}.lr_scale", 1.0, name)  # of learning_rate, where there is no own
    if plan.take("use_8bit_adam"):
        plan.choose("optimizer", "adamw8bit", "use_8bit_adam")


def _schedule(plan: Plan) -> None:
    kind, cycles = plan.take("scheduler"), plan.take("cosine_restarts")
    power, warmup = plan.take("scheduler_power"), plan.take("warmup_lr_ratio")
    if kind is None:
        return
    if kind not in Schedule.__members__:
        if kind != "adafactor":  # that optimizer's own, which goes with no other
            plan.note(Verdict.no_equivalent, "scheduler", f"{kind} is not a schedule here; "
                      "constant is taken; multistep falls by one factor.")  # fmt: skip
        kind = "constant"
    steps = plan.take("lr_warmup_steps")
    named = "lr_warmup_steps" if steps else "warmup_lr_ratio"
    if kind == "constant_with_warmup" and not (warmup or steps):
        kind = "constant"  # the same
    elif kind == "constant" and (warmup or steps):
        plan.note(Verdict.mistake, named, "has no effect on a constant rate; sd-scripts refuses it "
                  "today. scheduler=constant_with_warmup has one.")  # fmt: skip
        warmup = steps = None
    plan.choose("scheduler", kind, "scheduler")
    if kind == "cosine_with_restarts":
        plan.put("scheduler.num_cycles", int(cycles or 1), "cosine_restarts")
    if kind == "polynomial":
        rate = float(plan.settings.get("learning_rate") or 1e-4)
        plan.put("scheduler.power", float(power or 1), "scheduler_power")
        plan.put("scheduler.end_factor", float(f"{min(1.0, END_RATE / rate):.6g}"),
                 "scheduler_power")  # fmt: skip
    share = steps if steps and steps < 1 else warmup
    plan.put("scheduler.warmup_fraction", float(share or 0), named)
    if steps and steps >= 1:
        plan.put("scheduler.warmup_steps", int(steps), named)


def _length(plan: Plan) -> None:
    steps, epochs = plan.take("max_steps"), plan.take("num_epochs")
    if steps and epochs and plan.format not in (Format.launcher, Format.metadata):
        plan.note(Verdict.no_equivalent, "max_steps", "the number of epochs is given, and "
                  "overrules it in sd-scripts.")  # fmt: skip
        steps = None
    if steps:
        plan.put("trainer.max_steps", steps, "max_steps")
        plan.put("trainer.max_epochs", None, "max_steps")
        if epochs:
            plan.note(
                Verdict.no_equivalent,
                "num_epochs",
                "the number of steps is given, and overrules it.",
            )
    elif epochs:
        plan.put("trainer.max_steps", -1, "num_epochs")
        plan.put("trainer.max_epochs", epochs, "num_epochs")
    if plan.has("gradient_acc_steps") or plan.format is not Format.metadata:
        plan.put("trainer.accumulate_grad_batches", plan.take("gradient_acc_steps") or 1,
                 "gradient_acc_steps")  # fmt: skip
    if (
        plan.format is Format.launcher and plan.settings.get("gradient_acc_steps")
        and not plan.settings.get("gradient_checkpointing")
    ):  # fmt: skip
        plan.note(Verdict.mistake, "gradient_acc_steps", "was read by that program with "
                  "gradient_checkpointing alone; it counts here.")  # fmt: skip
    if plan.has("test_seed"):
        plan.put("seed", plan.take("test_seed") or 0, "test_seed")


def _images(plan: Plan) -> None:
    folder, classes = plan.take("img_folder"), plan.take("reg_img_folder")
    if folder:
        plan.put("data.image_dir", folder, "img_folder")
        plan.put("data.layout", "numbered_folders", "img_folder")
    if classes or plan.has("reg_img_folder"):
        plan.put("data.prior.image_dir", classes, "reg_img_folder")
        plan.put("data.prior.layout", "numbered_folders" if classes else None, "reg_img_folder")
    _same(plan, "prior_loss_weight", "data.prior.weight")
    _same(plan, "batch_size", "data.batch_size")
    _same(plan, "num_workers", "data.num_workers")
    _same(plan, "persistent_workers", "data.persistent_workers")
    if extension := plan.take("caption_extension"):
        plan.put("data.caption_extension", "." + extension.lstrip("."), "caption_extension")


def _sizes(plan: Plan) -> None:
    enabled = plan.take("buckets")
    if size := plan.take("train_resolution"):
        plan.put("data.resolution", _side(plan, str(size)), "train_resolution")
    if enabled is not None:
        in_one = "data.buckets.sizes" in plan.values
        plan.put("data.buckets.enabled", enabled or in_one, "buckets")
    _same(plan, "min_bucket_resolution", "data.buckets.min_side")
    _same(plan, "max_bucket_resolution", "data.buckets.max_side")
    if plan.has("bucket_reso_steps") or plan.format is not Format.metadata:
        plan.put("data.buckets.step", plan.take("bucket_reso_steps") or 64, "bucket_reso_steps")
    no_upscale = plan.take("bucket_no_upscale")
    if no_upscale is not None:
        plan.put("data.buckets.no_upscale", bool(no_upscale and enabled), "bucket_no_upscale")
        if no_upscale and not enabled:
            plan.note(Verdict.mistake, "bucket_no_upscale", "has no effect without buckets.")


def _side(plan: Plan, text: str) -> int:
    """Return the side of the square of a size, written S or W,H."""
    width, _, height = text.partition(",")
    if height in ("", width):
        return int(width)
    side = max(1, round(math.sqrt(int(width) * int(height)) / 64)) * 64
    if plan.settings.get("buckets"):
        text = (
            f"is {text}; only its area counts with buckets, which is about that of {side}x{side}."
        )
        plan.note(Verdict.mapped, "train_resolution", text)
    else:  # sd-scripts without buckets: every image in that one shape
        plan.put("data.buckets.sizes", [f"{width}x{height}"], "train_resolution")
    return side


def _captions(plan: Plan) -> None:
    for name, key, neutral in (
        ("caption_dropout_rate", "caption_dropout", 0.0),
        ("caption_tag_dropout_rate", "tag_dropout", 0.0),
        ("keep_tokens", "keep_tags", 0),
        ("shuffle_captions", "shuffle_tags", False),
        ("caption_dropout_every_n_epochs", "caption_dropout_every_n_epochs", None),
        ("tag_occurrence_txt_file", "tag_occurrence_file", False),
    ):
        value = plan.take(name)
        if value is not None or plan.format is not Format.metadata:
            plan.put(f"data.captions.{key}", value or neutral, name)
    by_name = plan.take("sort_tag_occurrence_alphabetically")
    if by_name is not None:
        plan.put("data.captions.tag_occurrence_order", "name" if by_name else "count",
                 "sort_tag_occurrence_alphabetically")  # fmt: skip


def _cache(plan: Plan) -> None:
    given = {kind: plan.take(f"{kind}_aug") for kind in ("flip", "color")}
    given["random_crop"] = plan.take("random_crop")
    chosen = [kind for kind, wanted in given.items() if wanted]
    if any(value is not None for value in given.values()):
        plan.put("data.augmentations", chosen, "flip_aug")
    cached = plan.take("cache_latents")
    if plan.take("cache_latents_to_disk"):  # which is to cache, too
        cached = True
        plan.put("data.latent_cache.storage", "disk", "cache_latents_to_disk")
    endless = [kind for kind in chosen if kind != "flip"]
    if cached and endless:
        plan.note(Verdict.mistake, "cache_latents", f"stands beside {' and '.join(endless)}, which "
                  "that program refuses or drops; latents are not cached here.")  # fmt: skip
    if cached is not None:
        plan.put("data.latent_cache.enabled", bool(cached and not endless), "cache_latents")


def _precision(plan: Plan) -> None:
    if plan.has("mixed_precision"):
        word = plan.take("mixed_precision") or "no"
        plan.put("trainer.precision", PRECISIONS.get(word, word), "mixed_precision")
        stored = {"no": "fp32"}.get(word, word)
        plan.put("model.weight_dtype", stored, "mixed_precision")
    if plan.has("save_precision") or plan.format is not Format.metadata:
        word = plan.take("save_precision")
        word = FILE_PRECISIONS.get(word, word)
        plan.put("export.precision", word, "save_precision")
    _same(plan, "save_as", "export.container")


def _files(plan: Plan) -> None:
    _same(plan, "output_folder", "output_dir")
    name = plan.take("change_output_name")
    if name or plan.format is not Format.metadata:
        plan.put("name", str(name or "last"), "change_output_name")
    _same(plan, "training_comment", "export.comment")
    no_meta = plan.take("no_meta")
    if no_meta is not None:
        plan.put("export.metadata", "minimal" if no_meta else "full", "no_meta")
    if plan.has("save_every_n_epochs") or plan.format is not Format.metadata:
        every = plan.take("save_every_n_epochs") or None
        plan.put("export.every_n_epochs", every, "save_every_n_epochs")
    if plan.has("log_dir") or plan.format is not Format.metadata:
        folder = plan.take("log_dir")
        plan.choose("logger", "tensorboard" if folder else "none", "log_dir")
        if folder:
            plan.note(Verdict.mapped, "log_dir", "logs lie in the run folder here.")


def _states(plan: Plan) -> None:
    if plan.has("save_state"):
        kept = None if plan.take("save_state") else 2
        plan.put("callbacks.checkpoint.keep_last", kept, "save_state")
    state = plan.take("load_previous_save_state")
    if state and Path(str(state)).suffix == ".ckpt":
        plan.put("resume", str(state), "load_previous_save_state")
    elif state:
        plan.note(Verdict.no_equivalent, "load_previous_save_state", "the state of another program "
                  "cannot be gone on from; adapter.init_from takes its weights.")  # fmt: skip


def _launcher(plan: Plan) -> None:
    if plan.has("save_json_only"):
        plan.put("check_only", bool(plan.take("save_json_only")), "save_json_only")
    instead = {
        "save_json_folder": "every run folder holds its settings.json.",
        "load_json_path": "`loralab settings load` reads the file that it is given.",
        "json_load_skip_list": "`--skip` takes the list; one in the file counts for nothing.",
        "multi_run_folder": "`loralab queue FOLDER` runs the files of a folder.",
    }
    for name, text in instead.items():
        if plan.take(name):
            plan.note(Verdict.no_equivalent, name, text)


def _same(
    plan: Plan, name: str, key: str, convert: Callable[[Any], Any] = lambda value: value,
    *, always: bool = False,
) -> None:  # fmt: skip
    """Put a setting that means the same here; `always` also where it is not given."""
    value = plan.take(name)
    if value is not None or (always and plan.format is not Format.metadata):
        plan.put(key, convert(value) if value is not None else None, name)

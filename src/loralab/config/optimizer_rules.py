"""Rules of optimizers and averages: what finds a rate or needs no schedule leaves little to set.

Optimizers are told by the last piece of `optimizer._target_`, so nothing is imported.
"""

from __future__ import annotations

from collections.abc import Iterator

from loralab.config.choices import AdapterDtype, AdapterKind, Schedule, WeightNorm
from loralab.config.records import RunConfig
from loralab.errors import Problem

# Multiply the rate they find by lr.
FINDS_RATE = ("DAdaptAdam", "DAdaptSGD", "DAdaptLion", "DAdaptAdaGrad", "DAdaptAdan", "Prodigy",
              "ProdigyPlusScheduleFree")  # fmt: skip
# Of these, the ones that find a rate for each group by itself.
BY_GROUP = ("ProdigyPlusScheduleFree",)
SCHEDULE_FREE = ("AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree", "ScheduleFreeAdamW",
                 "ScheduleFreeRAdam", "ScheduleFreeSGD", "ProdigyPlusScheduleFree")  # fmt: skip
# Keep all they know by parameter, so parameters can be stepped one by one.
BY_PARAMETER = ("torch.optim.AdamW", "torch.optim.Adam", "torch.optim.SGD", "torch.optim.RMSprop",
                "torch.optim.Adafactor", "torch.optim.Adagrad", "torch.optim.NAdam",
                "torch.optim.RAdam", "transformers.optimization.Adafactor")  # fmt: skip
LOW, HIGH = 0.1, 10.0  # sensible multiples of a rate that is found


def optimizer_name(config: RunConfig) -> str:
    """Return the name of the class or function that makes the optimizer."""
    return str(config.optimizer.get("_target_", "")).rpartition(".")[2]


def has_relative_step(config: RunConfig) -> bool:
    """Tell whether the optimizer's steps follow from their number and the weights alone."""
    return bool(config.optimizer.get("relative_step"))


def finds_its_rate(config: RunConfig) -> bool:
    """Tell whether the optimizer finds the rate, so that there is none to choose."""
    return has_relative_step(config) or optimizer_name(config) in FINDS_RATE


def is_schedule_free(config: RunConfig) -> bool:
    """Tell whether the optimizer averages its weights by itself, in place of a schedule."""
    return optimizer_name(config) in SCHEDULE_FREE and bool(
        config.optimizer.get("use_schedulefree", True)
    )


def rate_is_a_multiple(config: RunConfig) -> Iterator[Problem]:
    """An optimizer that finds the rate takes lr as a multiple of it."""
    name, lr = optimizer_name(config), config.optimizer.get("lr", 1.0)
    if name in FINDS_RATE and isinstance(lr, int | float) and not LOW <= lr <= HIGH:
        yield Problem(
            "optimizer.lr",
            f"optimizer.lr is {lr:g}, but {name} finds the rate itself and multiplies it by lr; "
            "set optimizer.lr=1.0.",
        )


def relative_steps_have_no_rate(config: RunConfig) -> Iterator[Problem]:
    """Relative steps leave no place for a rate or a schedule."""
    lr, scheduler = config.optimizer.get("lr"), config.scheduler
    if not has_relative_step(config):
        if lr is None and "lr" in config.optimizer:
            yield Problem(
                "optimizer.lr", "optimizer.lr is null; it must be a number of at least 0."
            )
        return
    if lr is not None:
        yield Problem(
            "optimizer.lr",
            f"optimizer.lr is {lr}, but optimizer.relative_step is true and takes none; set "
            "optimizer.lr=null, or optimizer.relative_step=false.",
        )
    if scheduler.kind is not Schedule.constant or scheduler.warmup_steps:
        yield Problem(
            "scheduler.kind",
            f"scheduler.kind is {scheduler.kind.name} with {scheduler.warmup_steps} steps of "
            "warm-up, but optimizer.relative_step is true and has a schedule of its own; set "
            "scheduler=constant scheduler.warmup_steps=0, or optimizer.relative_step=false.",
        )
    elif scheduler.warmup_fraction:
        yield Problem(
            "scheduler.warmup_fraction",
            f"scheduler.warmup_fraction is {scheduler.warmup_fraction:g}, but "
            "optimizer.relative_step is true and has a schedule of its own; set it to 0.",
        )


def schedule_free_has_no_schedule(config: RunConfig) -> Iterator[Problem]:
    """A schedule-free optimizer averages instead of lowering the rate."""
    if not is_schedule_free(config):
        return
    name, scheduler = optimizer_name(config), config.scheduler
    if scheduler.kind not in (Schedule.constant, Schedule.constant_with_warmup):
        yield Problem(
            "scheduler.kind",
            f"scheduler.kind is {scheduler.kind.name}, but {name} averages its weights instead of "
            "lowering the rate; set scheduler=constant or scheduler=constant_with_warmup.",
        )
    own = config.optimizer.get("warmup_steps")
    if own and (scheduler.warmup_steps or scheduler.warmup_fraction):
        yield Problem(
            "optimizer.warmup_steps",
            f"optimizer.warmup_steps is {own} and the scheduler warms up too; set one of them to "
            "0.",
        )
    if config.ema.enabled:
        yield Problem(
            "ema.enabled",
            f"ema.enabled is true, but {name} averages its weights by itself; set ema=off.",
        )


def one_rate_for_all(config: RunConfig) -> Iterator[Problem]:
    """An optimizer that finds one rate for everything cannot hold several."""
    name, relative = optimizer_name(config), has_relative_step(config)
    if (name not in FINDS_RATE or name in BY_GROUP) and not relative:
        return
    adapter, blocks = config.adapter, config.adapter.blocks
    parts = {"unet": adapter.unet, "text_encoder": adapter.text_encoder}
    given: dict[str, object] = {"adapter.lora_plus_ratio": adapter.lora_plus_ratio != 1 and
                                adapter.lora_plus_ratio}  # fmt: skip
    for part, own in parts.items():
        if own.enabled:
            given |= {
                f"adapter.{part}.lr": own.lr,
                f"adapter.{part}.lr_scale": own.lr_scale != 1 and own.lr_scale,
                f"adapter.{part}.lora_plus_ratio": own.lora_plus_ratio not in (None, 1)
                and own.lora_plus_ratio,
                f"adapter.{part}.lr_scale_by_pattern": own.lr_scale_by_pattern,
            }
    for way in ("down", "mid", "up"):
        given[f"adapter.blocks.{way}_lr_scales"] = getattr(blocks, f"{way}_lr_scales")
    why = "optimizer.relative_step is true" if relative else f"{name} finds one rate"
    for key, value in given.items():
        if value not in (None, False, []):
            neutral = _NEUTRAL.get(key.rpartition(".")[2], "[]")
            yield Problem(
                key,
                f"{key} is {value}, but {why} for all parameters alike; set it to {neutral}, or "
                "choose another optimizer, such as optimizer=adamw.",
            )


def decay_is_the_optimizers(config: RunConfig) -> Iterator[Problem]:
    """Rules of weight decay are for optimizers that decay."""
    if "weight_decay" in config.optimizer:
        return
    adapter = config.adapter
    given = {
        "adapter.unet.weight_decay": adapter.unet.weight_decay,
        "adapter.text_encoder.weight_decay": adapter.text_encoder.weight_decay,
        "adapter.decay_vectors": None if adapter.decay_vectors else "false",
    }
    for key, value in given.items():
        if value is not None:
            yield Problem(
                key,
                f"{key} is {value}, but the recipe of {optimizer_name(config)} has no "
                "weight_decay; leave it out, or add weight_decay to the recipe.",
            )


def fused_backward_is_exact(config: RunConfig) -> Iterator[Problem]:
    """A step inside the backward pass sees one gradient of one micro-batch, and nothing else."""
    if not config.fused_backward:
        return
    trainer, target = config.trainer, str(config.optimizer.get("_target_"))
    watching = [
        name
        for name, recipe in config.callbacks.items()
        if recipe and str(recipe.get("_target_")).endswith((".DeadAdapters", ".GradientNoise"))
    ]
    obstacles: dict[str, tuple[object, str]] = {
        "optimizer._target_": (target not in BY_PARAMETER and target, BY_PARAMETER[0]),
        "trainer.gradient_clip_val": (trainer.get("gradient_clip_val"), "null"),
        "trainer.accumulate_grad_batches": (trainer.get("accumulate_grad_batches", 1) != 1 and
                                            trainer.get("accumulate_grad_batches"), "1"),
        "trainer.devices": (trainer.get("devices", 1) != 1 and trainer.get("devices"), "1"),
        "trainer.precision": (trainer.get("precision") == "16-mixed" and "16-mixed",
                              "bf16-mixed"),
        **{f"callbacks.{name}": ("on", "null") for name in watching},
    }  # fmt: skip
    for key, (value, remedy) in obstacles.items():
        if value:
            yield Problem(
                key,
                f"{key} is {value}, which needs all gradients of a step at once, but "
                f"fused_backward is true; set {key}={remedy}, or fused_backward=false.",
            )


def rounding_is_exact(config: RunConfig) -> Iterator[Problem]:
    """Weights in bfloat16 are stepped one by one in float32, and rounded once, by chance."""
    if config.adapter.weight_dtype is AdapterDtype.fp32:
        return
    trainer, target = config.trainer, str(config.optimizer.get("_target_"))
    kind, norm = config.adapter.kind, config.adapter.weight_norm.type
    rounds = "would round weights to the nearest once more"
    obstacles: dict[str, tuple[object, str, str]] = {
        "adapter.kind": (kind is not AdapterKind.lora and kind.name, "lora",
                         "computes in float32"),
        "optimizer._target_": (target not in BY_PARAMETER and target, BY_PARAMETER[0],
                               "does not step parameters one by one in float32"),
        "trainer.precision": (trainer.get("precision") == "16-mixed" and "16-mixed", "bf16-mixed",
                              "scales gradients for half precision"),
        "trainer.devices": (trainer.get("devices", 1) != 1 and trainer.get("devices"), "1",
                            "would average gradients in bfloat16"),
        "ema.enabled": (config.ema.enabled and "true", "false", rounds),
        "adapter.weight_norm.type": (norm is not WeightNorm.none and norm.name, "none", rounds),
    }  # fmt: skip
    for key, (value, remedy, why) in obstacles.items():
        if value:
            yield Problem(
                key,
                f"{key} is {value}, which {why}, but adapter.weight_dtype is bf16; set "
                f"{key}={remedy}, or adapter.weight_dtype=fp32.",
            )


def averages_are_used(config: RunConfig) -> Iterator[Problem]:
    """An average that nothing takes, or that never begins, is a mistake."""
    ema, steps = config.ema, config.trainer.get("max_steps", -1)
    if ema.enabled and not ema.use_for:
        yield Problem(
            "ema.use_for",
            "ema.use_for is empty, so nothing would take the average; name some of validation, "
            "preview and export, or set ema=off.",
        )
    if ema.enabled and isinstance(steps, int) and 0 < steps <= ema.start_step:
        yield Problem(
            "ema.start_step",
            f"ema.start_step is {ema.start_step}; it must be below trainer.max_steps ({steps}).",
        )


_NEUTRAL = {"lr": "null", "lr_scale": "1.0", "lora_plus_ratio": "1.0"}

OPTIMIZER_RULES = (
    rate_is_a_multiple,
    relative_steps_have_no_rate,
    schedule_free_has_no_schedule,
    one_rate_for_all,
    decay_is_the_optimizers,
    fused_backward_is_exact,
    rounding_is_exact,
    averages_are_used,
)

"""Broken and fine values for the rules of optimizers and averages, as `test_rules` wants them."""

from __future__ import annotations

from typing import Any

from loralab.config.choices import AdapterDtype, AdapterKind, AverageUse, Schedule, WeightNorm

RELATIVE = {
    "_target_": "transformers.optimization.Adafactor", "lr": None, "relative_step": True,
    "weight_decay": 0.0,
}  # fmt: skip
PRODIGY = {"_target_": "prodigyopt.Prodigy", "lr": 1.0, "weight_decay": 0.0}
FREE = {"_target_": "schedulefree.AdamWScheduleFree", "lr": 3e-4, "weight_decay": 0.0}
AVERAGE = {"ema.enabled": True, "ema.use_for": [AverageUse.export]}
FUSED = {"fused_backward": True, "trainer.gradient_clip_val": None, "callbacks": {}}
DEAD = {"_target_": "loralab.training.callbacks.adapter_care.DeadAdapters"}
HALF = {"adapter.weight_dtype": AdapterDtype.bf16}
EQUAL = {"adapter.text_encoder.lr_scale": 1.0}

OPTIMIZER_CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    (
        "rate_is_a_multiple",
        {"optimizer": {**PRODIGY, "lr": 1e-4}, **EQUAL},
        "optimizer.lr",
        {"optimizer": {**PRODIGY, "lr": 0.5}, **EQUAL},
    ),
    (
        "relative_steps_have_no_rate",
        {"optimizer": {**RELATIVE, "lr": 1e-3}, **EQUAL},
        "optimizer.lr",
        {"optimizer": RELATIVE, **EQUAL},
    ),
    (
        "relative_steps_have_no_rate",
        {"optimizer": RELATIVE, **EQUAL, "scheduler.kind": Schedule.linear},
        "scheduler.kind",
        {"scheduler.kind": Schedule.linear},
    ),
    (
        "relative_steps_have_no_rate",
        {"optimizer": RELATIVE, **EQUAL, "scheduler.warmup_fraction": 0.1},
        "scheduler.warmup_fraction",
        {"scheduler.warmup_fraction": 0.1},
    ),
    (
        "relative_steps_have_no_rate",
        {"optimizer": {"_target_": "torch.optim.AdamW", "lr": None, "weight_decay": 0.0}},
        "optimizer.lr",
        {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.1, "weight_decay": 0.0}},
    ),
    (
        "schedule_free_has_no_schedule",
        {"optimizer": FREE, "scheduler.kind": Schedule.cosine},
        "scheduler.kind",
        {"optimizer": FREE, "scheduler.warmup_steps": 5},
    ),
    (
        "schedule_free_has_no_schedule",
        {"optimizer": {**FREE, "warmup_steps": 5}, "scheduler.warmup_steps": 5},
        "optimizer.warmup_steps",
        {"optimizer": {**FREE, "warmup_steps": 5}},
    ),
    ("schedule_free_has_no_schedule", {"optimizer": FREE, **AVERAGE}, "ema.enabled", AVERAGE),
    (
        "one_rate_for_all",
        {"optimizer": PRODIGY},
        "adapter.text_encoder.lr_scale",
        {"optimizer": PRODIGY, **EQUAL},
    ),
    (
        "one_rate_for_all",
        {"optimizer": PRODIGY, **EQUAL, "adapter.lora_plus_ratio": 4.0},
        "adapter.lora_plus_ratio",
        {"adapter.lora_plus_ratio": 4.0},
    ),
    (
        "one_rate_for_all",
        {"optimizer": RELATIVE, **EQUAL, "adapter.unet.lr": 1e-3},
        "adapter.unet.lr",
        {"adapter.unet.lr": 1e-3},
    ),
    (
        "decay_is_the_optimizers",
        {"optimizer": {"_target_": "torch.optim.Rprop", "lr": 0.1}, "adapter.decay_vectors": False},
        "adapter.decay_vectors",
        {"adapter.decay_vectors": False},
    ),
    (
        "fused_backward_is_exact",
        {**FUSED, "trainer.gradient_clip_val": 1.0},
        "trainer.gradient_clip_val",
        FUSED,
    ),
    (
        "fused_backward_is_exact",
        {**FUSED, "trainer.accumulate_grad_batches": 2},
        "trainer.accumulate_grad_batches",
        FUSED,
    ),
    (
        "fused_backward_is_exact",
        {**FUSED, "optimizer": {**PRODIGY}, **EQUAL},
        "optimizer._target_",
        FUSED,
    ),
    (
        "fused_backward_is_exact",
        {**FUSED, "callbacks": {"dead_adapters": DEAD}},
        "callbacks.dead_adapters",
        FUSED,
    ),
    (
        "rounding_is_exact",
        {**HALF, "optimizer": {**PRODIGY}, **EQUAL},
        "optimizer._target_",
        HALF,
    ),
    ("rounding_is_exact", {**HALF, **AVERAGE}, "ema.enabled", HALF),
    ("rounding_is_exact", {**HALF, "adapter.kind": AdapterKind.loha}, "adapter.kind", HALF),
    (
        "rounding_is_exact",
        {**HALF, "adapter.weight_norm.type": WeightNorm.frobenius},
        "adapter.weight_norm.type",
        HALF,
    ),
    (
        "rounding_is_exact",
        {**HALF, "trainer.devices": 2},
        "trainer.devices",
        {"trainer.devices": 2},
    ),
    (
        "rounding_is_exact",
        {**HALF, "trainer.precision": "16-mixed"},
        "trainer.precision",
        {**HALF, "trainer.precision": "bf16-mixed"},
    ),
    (
        "averages_are_used",
        {**AVERAGE, "ema.use_for": []},
        "ema.use_for",
        AVERAGE,
    ),
    (
        "averages_are_used",
        {**AVERAGE, "ema.start_step": 1000},
        "ema.start_step",
        {**AVERAGE, "ema.start_step": 999},
    ),
]

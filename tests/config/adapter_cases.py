"""Mistakes of the adapter's settings: rule, broken values, key, a neighbour that is fine."""

from __future__ import annotations

from typing import Any

from loralab.config.choices import AdapterKind

ADAPTER_CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    (
        "_settings_mean_something",
        {"adapter.kind": AdapterKind.dora, "adapter.module_dropout": 0.1},
        "adapter.module_dropout",
        {"adapter.kind": "loha", "adapter.module_dropout": 0.1},
    ),
    (
        "_settings_mean_something",
        {"adapter.kind": AdapterKind.loha, "adapter.rank_dropout": 0.75},
        "adapter.rank_dropout",
        {"adapter.kind": "loha", "adapter.rank_dropout": 0.5},
    ),
    (
        "_settings_mean_something",
        {"adapter.kind": AdapterKind.lokr, "adapter.unet.lora_plus_ratio": 4.0},
        "adapter.unet.lora_plus_ratio",
        {"adapter.kind": "dora", "adapter.unet.lora_plus_ratio": 4.0},
    ),
    (
        "_patterns_have_values_in_range",
        {"adapter.unet.rank_by_pattern": ["to_q:1.5"]},
        "adapter.unet.rank_by_pattern",
        {"adapter.unet.rank_by_pattern": ["to_q:2", "(?:.*)to_k:3"]},
    ),
    (
        "_blocks_have_values_in_range",
        {"adapter.blocks.ranks": [4, -1]},
        "adapter.blocks.ranks",
        {"adapter.blocks.ranks": [4, 0]},
    ),
    (
        "_something_is_trained_to_the_end",
        {"adapter.unet.freeze_after_steps": 5, "adapter.text_encoder.freeze_after_steps": 5},
        "adapter.unet.freeze_after_steps",
        {"adapter.unet.freeze_after_steps": 5},
    ),
    (
        "_file_settings_need_a_file",
        {"adapter.rank_from_file": True},
        "adapter.rank_from_file",
        {"adapter.rank_from_file": True, "adapter.init_from": "a.safetensors"},
    ),
    (
        "_some_layout_can_hold_the_kind",
        {"adapter.kind": AdapterKind.oft, "export.layouts": ["diffusers"]},
        "export.layouts",
        {"adapter.kind": "oft", "export.layouts": ["diffusers", "kohya"]},
    ),
    (
        "_thumbnails_need_previews",
        {"export.modelspec.thumbnail": 64},
        "export.modelspec.thumbnail",
        {"export.modelspec.thumbnail": 64, "preview.prompts": ["a square"]},
    ),
]

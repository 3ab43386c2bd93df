"""The network module of sd-scripts and its arguments -> our adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from loralab.app.settings.original import Verdict
from loralab.app.settings.plan import OFF, Plan

BLOCK_LISTS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "block_dims": ("adapter.blocks.ranks", int),
    "block_alphas": ("adapter.blocks.alphas", float),
    "conv_block_dims": ("adapter.blocks.conv_ranks", int),
    "conv_block_alphas": ("adapter.blocks.conv_alphas", float),
    "down_lr_weight": ("adapter.blocks.down_lr_scales", str),
    "mid_lr_weight": ("adapter.blocks.mid_lr_scales", str),
    "up_lr_weight": ("adapter.blocks.up_lr_scales", str),
}
_LYCORIS = "lycoris.kohya"
_MODULES = {"networks.lora": "lora", "locon.locon_kohya": "lora", "networks.dylora": "dylora",
            "networks.oft": "oft"}  # fmt: skip
_ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr", "dylora": "dylora",
               "diag-oft": "oft", "boft": "boft"}  # fmt: skip
# LyCORIS' preset -> targets of the UNet and of the text encoder.
_PRESETS = {
    "full": ("full", "sd_scripts"),
    "attn-mlp": ("sd_scripts", "sd_scripts"),
    "attn-only": ("attention", "attention"),
}


def translate_module(plan: Plan) -> None:
    """Translate the network module and its arguments."""
    module = plan.take("network_module", "networks.lora")
    algorithm = str(plan.take("algo", "lora")).lower()
    is_lycoris = module == _LYCORIS
    kind = _ALGORITHMS.get(algorithm) if is_lycoris else _MODULES.get(module)
    if kind is None:
        name, word = ("algo", algorithm) if is_lycoris else ("network_module", module)
        plan.note(Verdict.no_equivalent, name, f"{word} is no adapter kind here; a plain LoRA is "
                  "taken.")  # fmt: skip
        kind = "lora"
    if kind == "lora" and is_lycoris and (plan.take("use_tucker") or plan.take("use_cp")):
        kind = "tucker"
    if plan.take("dora_wd"):
        kind = "dora"
    if kind != "lora" or plan.has("network_module"):
        plan.choose("adapter", kind, "algo" if plan.has("algo") else "network_module")
    (_of_lycoris if is_lycoris else _convolutions)(plan)
    _dropout(plan, kind)
    if kind == "lokr":
        for name, key in (("factor", "decompose_factor"), ("decompose_both", "decompose_both")):
            if (value := plan.take(name)) not in OFF:
                plan.put(f"adapter.{key}", value, name)
    if limit := plan.take("scale_weight_norms"):
        plan.put("adapter.weight_norm.type", "frobenius", "scale_weight_norms")
        plan.put("adapter.weight_norm.max", limit, "scale_weight_norms")
    _blocks(plan)


def _convolutions(plan: Plan) -> None:
    """Without `conv_dim` sd-scripts adapts no convolution beyond 1x1; its alpha is 1 by default."""
    if rank := plan.take("conv_dim"):
        plan.put("adapter.unet.targets", ["full"], "conv_dim")
        plan.put("adapter.conv_rank", rank, "conv_dim")
        plan.put("adapter.conv_alpha", float(plan.take("conv_alpha", 1.0) or rank), "conv_alpha")
    elif plan.take("conv_alpha"):
        plan.note(Verdict.no_equivalent, "conv_alpha", "has no effect without conv_dim.")


def _of_lycoris(plan: Plan) -> None:
    """Rank and alpha of convolutions are those of the linear layers where none are given."""
    preset = str(plan.take("preset", "full"))
    targets = _PRESETS.get(preset)
    if targets is None:
        plan.note(Verdict.no_equivalent, "preset", f"{preset} is no preset of targets here; those "
                  f"of full are taken. Others: {', '.join(_PRESETS)}; adapter.unet.targets takes "
                  "names of modules too.")  # fmt: skip
        targets = _PRESETS["full"]
    for part, target in zip(("unet", "text_encoder"), targets, strict=True):
        plan.put(f"adapter.{part}.targets", [target], "preset")
    rank, alpha = plan.take("conv_dim"), plan.take("conv_alpha")
    if targets == _PRESETS["full"]:
        rank = rank or plan.values.get("adapter.rank")
        alpha = alpha or plan.values.get("adapter.alpha")
    if rank:
        plan.put("adapter.conv_rank", rank, "conv_dim")
    if alpha:
        plan.put("adapter.conv_alpha", float(alpha), "conv_alpha")


def _dropout(plan: Plan, kind: str) -> None:
    name = "network_dropout" if plan.take("network_dropout") else "dropout"
    if dropout := plan.take(name):
        plan.put("adapter.dropout", float(dropout), name)
        if kind == "lora":
            plan.put("adapter.dropout_place", "inner", name)


def _blocks(plan: Plan) -> None:
    for name, (key, convert) in BLOCK_LISTS.items():
        if not (text := plan.take(name)):
            continue
        try:
            plan.put(key, [convert(word) for word in str(text).split(",") if word.strip()], name)
        except ValueError:
            word = "whole numbers" if convert is int else "numbers"
            plan.note(Verdict.mistake, name, f"is {text!r}, where {word} with commas between "
                      "belong.")  # fmt: skip

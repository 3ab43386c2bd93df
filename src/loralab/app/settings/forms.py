"""What kohya_ss' forms keep as JSON -> options of sd-scripts, as the forms pass them on.

The forms drop what does not belong to what is chosen: convolutions of a plain LoRA,
multi-resolution noise beside an offset, a rate of 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loralab.app.settings.commands import command_line
from loralab.app.settings.original import Original, Verdict
from loralab.app.settings.vocabulary import GUI_NAMES, GUI_ONLY

NOTHING = (None, "", "None")
_ZERO = (*NOTHING, 0, "0", "0.0", False)
# LoRA_type -> network module and algorithm.
_KINDS = {
    "Standard": ("networks.lora", None), "Kohya LoCon": ("networks.lora", None),
    "Kohya DyLoRA": ("networks.dylora", None), "LoRA-FA": ("networks.lora_fa", None),
    "LoCon": ("lycoris.kohya", "locon"), "LyCORIS/LoCon": ("lycoris.kohya", "locon"),
    "LyCORIS/LoHa": ("lycoris.kohya", "loha"), "LyCORIS/LoKr": ("lycoris.kohya", "lokr"),
    "LyCORIS/DyLoRA": ("lycoris.kohya", "dylora"), "LyCORIS/iA3": ("lycoris.kohya", "ia3"),
    "LyCORIS/Diag-OFT": ("lycoris.kohya", "diag-oft"), "LyCORIS/BOFT": ("lycoris.kohya", "boft"),
    "LyCORIS/GLoRA": ("lycoris.kohya", "glora"),
    "LyCORIS/Native Fine-Tuning": ("lycoris.kohya", "full"),
}  # fmt: skip
_NOISE = {
    "Original": ("multires_noise_iterations", "multires_noise_discount"),
    "Multires": ("noise_offset", "adaptive_noise_scale", "noise_offset_random_strength"),
}
_ONLY_LYCORIS = ("algo", "preset", "factor", "decompose_both", "use_cp", "use_tucker",
                 "train_norm", "rank_dropout_scale", "constrain", "LyCORIS_preset")  # fmt: skip

Option = tuple[str, str, Any]  # name in the file, option of sd-scripts, value


def options_of_forms(original: Original, raw: Mapping[str, Any]) -> Iterator[Option]:
    """Yield what the forms pass on to sd-scripts; what they drop is told."""
    dropped = dict(_dropped(raw))
    for name, value in raw.items():
        if reason := dropped.get(name):
            if value not in _ZERO and value not in (1, -1):  # what an untouched form holds
                original.note(Verdict.no_equivalent, name, f"{reason}, so the form drops it.")
            original.words[name] = name
        elif name == "additional_parameters" and str(value or "").strip():
            found, findings = command_line(str(value), original.path)
            original.findings += findings
            original.note(Verdict.mapped, name, f"is read as {' '.join(found) or 'nothing'}.")
            original.words[name] = name
            yield from ((option, option, item) for option, item in found.items())
        else:
            yield from ((name, option, item) for option, item in _passed_on(name, value))
    rates = [raw.get(name) not in _ZERO for name in ("unet_lr", "text_encoder_lr")]
    if {"unet_lr", "text_encoder_lr"} <= raw.keys() and rates[0] is not rates[1]:
        name, zero = (("network_train_unet_only", "text_encoder_lr") if rates[0]
                      else ("network_train_text_encoder_only", "unet_lr"))  # fmt: skip
        yield zero, name, True


def _dropped(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the fields that the forms drop, and why."""
    for name in _NOISE.get(str(raw.get("noise_offset_type")), ()):
        yield name, f"noise_offset_type is {raw['noise_offset_type']}"
    kind = str(raw.get("LoRA_type", ""))
    if kind in ("Standard", "LoRA-FA"):
        yield from ((name, f"LoRA_type is {kind}") for name in ("conv_dim", "conv_alpha"))
    if kind and _KINDS.get(kind, ("lycoris.kohya",))[0] != "lycoris.kohya":
        yield from ((name, f"LoRA_type is {kind}") for name in _ONLY_LYCORIS)
    for name in ("unet_lr", "text_encoder_lr"):
        if raw.get(name) in _ZERO:
            yield name, "it is 0"
    if raw.get("lr_warmup_steps") not in _ZERO:
        yield "lr_warmup", "lr_warmup_steps is given"
    if raw.get("max_train_epochs") not in _ZERO:
        yield "epoch", "max_train_epochs is given"
    elif raw.get("max_train_steps") not in _ZERO:
        yield "epoch", "max_train_steps is given"
    for name in ("max_train_epochs", "max_train_steps", "lr_warmup_steps", "lr_warmup"):
        if raw.get(name) in _ZERO:
            yield name, "it is 0"
    for name in ("stop_text_encoder_training", "stop_text_encoder_training_pct"):
        yield name, "the LoRA form does not know it"


def _passed_on(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the options of sd-scripts that a field becomes."""
    if name == "lr_warmup":
        share = _number(value)
        yield "lr_warmup_steps", value if share is None else share / 100  # per cent of all steps
    elif name == "xformers":
        yield "xformers", value in (True, "xformers")
    elif name in ("optimizer_args", "lr_scheduler_args") and isinstance(value, str):
        yield name, value.replace('"', "").split()
    elif name == "LoRA_type":
        module, algorithm = _KINDS.get(str(value), (str(value), None))
        yield "network_module", module
        if algorithm:
            yield "algo", algorithm
    elif name in GUI_ONLY or name == "noise_offset_type":
        yield name, None if value in (*_ZERO, 1, 2) or name == "noise_offset_type" else value
    else:
        yield GUI_NAMES.get(name, name), value


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None

"""The optimizer of sd-scripts and its arguments -> our recipe."""

from __future__ import annotations

from typing import Any

from loralab.app.settings.casts import literal
from loralab.app.settings.original import Verdict
from loralab.app.settings.plan import Plan
from loralab.app.settings.vocabulary import OPTIMIZERS
from loralab.config.parse import nearest
from loralab.config.store import conf_dir

# Recipe -> what the library takes for an argument left out, where the recipe has another value.
LIBRARY_VALUES: dict[str, dict[str, Any]] = {
    "lion": {"weight_decay": 0.0},
    "lion8bit": {"weight_decay": 0.0},
    "prodigy": {"weight_decay": 0.0, "use_bias_correction": False, "safeguard_warmup": False},
    "dadapt_adam": {"weight_decay": 0.0, "weight_decouple": False},
    "dadapt_lion": {"weight_decay": 0.0},
    "dadapt_sgd": {"momentum": 0.0},
    "adamw_schedulefree": {"weight_decay": 0.0},
    "adafactor": {"scale_parameter": True},
}
_SAME = ("adamw", "adamw8bit", "paged_adamw8bit", "sgd", "adafactor_relative", *LIBRARY_VALUES)
_OTHER_NAMES = {"sgdnesterov": "sgd"}
_ITS_OWN = "AdaFactor finds the rate by itself, unless relative_step=False."
_ARGUMENTS = {"dadapt_adam": {"decouple": "weight_decouple"}}  # of the same meaning


def translate_optimizer(plan: Plan) -> None:
    """Translate the optimizer, its arguments, and the limit on gradients."""
    name = "use_lion_optimizer" if plan.take("use_lion_optimizer") else "optimizer_type"
    word = "Lion" if name == "use_lion_optimizer" else plan.take("optimizer_type")
    given = _pairs(plan, plan.take("optimizer_args") or [])
    if word and plan.choices.get("optimizer") == "adamw8bit":
        plan.note(Verdict.mistake, name, "stands beside use_8bit_adam; sd-scripts refuses both, "
                  f"and {word} is taken here.")  # fmt: skip
        plan.choices.pop("optimizer")
    option = (
        _option(plan, name, str(word), given) if word else plan.choices.get("optimizer", "adamw")
    )
    if option is None:
        if given:
            plan.note(Verdict.no_equivalent, "optimizer_args", "belong to that optimizer.")
        given = {}
    elif option == "adafactor_relative":
        _without_rates(plan)
    names = _ARGUMENTS.get(option or "", {})
    arguments = {names.get(key, key): value for key, value in given.items()}
    for key, value in LIBRARY_VALUES.get(option or "", {}).items():
        plan.put(f"optimizer.{key}", value, name)
    for key, value in arguments.items():
        plan.put(f"optimizer.{key}", value, "optimizer_args")
    clip = plan.take("max_grad_norm")
    if clip is not None:
        plan.put("trainer.gradient_clip_val", clip or None, "max_grad_norm")


def _option(plan: Plan, name: str, word: str, given: dict[str, Any]) -> str | None:
    """Choose the recipe that sd-scripts' word or class stands for; None when there is none."""
    plain = word.partition("(")[0].rpartition(".")[2]
    lower = plain.lower().replace("_", "")
    options = {file.stem.replace("_", ""): file.stem for file in _recipes()}
    option = options.get(lower, _OTHER_NAMES.get(lower))
    if option == "adafactor" and given.get("relative_step", True):
        option = "adafactor_relative"
    if option is not None:
        if option != "adamw":
            plan.choose("optimizer", option, name)
        else:
            plan.origin["optimizer"] = name  # which is chosen already
            plan.choices["optimizer"] = option
        if option not in _SAME:
            plan.note(Verdict.mapped, name, f"is optimizer={option}; the values of that recipe "
                      "hold where optimizer_args gives none.")  # fmt: skip
    elif lower in (known.lower() for known in OPTIMIZERS) or "." in word:
        plan.note(Verdict.no_equivalent, name, f"there is no recipe of {plain}; adamw is taken.")
    else:
        plan.note(Verdict.mistake, name, f"is {plain}, which that program does not know; adamw is "
                  f"taken. {nearest(plain, OPTIMIZERS)}")  # fmt: skip
    return option


def _recipes() -> list[Any]:
    return list((conf_dir() / "optimizer").glob("*.yaml"))


def _without_rates(plan: Plan) -> None:
    """Adafactor finds its rate; sd-scripts then takes no rate and no schedule."""
    for key in ("optimizer.lr", "scheduler.warmup_steps", "scheduler.warmup_fraction"):
        plan.values.pop(key, None)
        name = plan.origin.pop(key, None)
        if name:
            plan.note(Verdict.no_equivalent, name, _ITS_OWN)
    for part in ("unet", "text_encoder"):
        if plan.values.get(f"adapter.{part}.lr"):
            plan.values[f"adapter.{part}.lr"] = None
            plan.note(Verdict.no_equivalent, plan.origin.pop(f"adapter.{part}.lr"), _ITS_OWN)
    for key in [key for key in plan.values if key.startswith("scheduler.")]:
        plan.values.pop(key)
        plan.origin.pop(key, None)
    if plan.choices.get("scheduler", "constant") != "constant":
        plan.note(Verdict.no_equivalent, "scheduler", "AdaFactor has a schedule of its own, unless "
                  "relative_step=False.")  # fmt: skip
    plan.choices["scheduler"] = "constant"


def _pairs(plan: Plan, texts: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            plan.note(Verdict.mistake, "optimizer_args", f"has {text!r}, which is not NAME=VALUE.")
            continue
        parsed = literal(value.strip())
        found[name.strip()] = list(parsed) if isinstance(parsed, tuple) else parsed
    return found

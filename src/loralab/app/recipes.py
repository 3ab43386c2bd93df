"""Recipes: `_target_` and keyword arguments, for callables whose signature is the schema.

Only targets below an allow-list are ever imported or called, and only at the top of a recipe.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

from loralab.config.parse import nearest
from loralab.errors import ConfigError, Problem

ALLOWED = {
    "optimizer": ("torch.optim.", "bitsandbytes.optim.", "pytorch_optimizer.", "prodigyopt.",
                  "schedulefree.", "prodigyplus.", "transformers.optimization.Adafactor",
                  "loralab.training.optimizers."),
    "trainer": ("lightning.pytorch.Trainer",),
    "callbacks": ("loralab.training.callbacks.", "lightning.pytorch.callbacks."),
}  # fmt: skip
EXTRAS = {
    "bitsandbytes": "bnb",
    "pytorch_optimizer": "optim",
    "prodigyopt": "optim",
    "schedulefree": "optim",
    "prodigyplus": "optim",
}
_HYDRA_KEYS = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")


def recipe_target(key: str, recipe: Mapping[str, Any]) -> Callable[..., Any]:
    """Return what a recipe calls.

    Args:
        key: Where the recipe stands, e.g. `optimizer` or `callbacks.progress`.
        recipe: Its content.

    Raises:
        ConfigError: Target missing, not allowed, not installed or not found.
    """
    group = key.split(".")[0]
    target = recipe.get("_target_")
    if not isinstance(target, str) or not target:
        raise _error(f"{key}._target_", "is missing; a recipe names what it calls.")
    if not _is_allowed(group, target):
        allowed = ", ".join(prefix.rstrip(".") for prefix in ALLOWED[group])
        raise _error(
            f"{key}._target_", f"is {target}, which is not on the allow-list; allowed: {allowed}."
        )
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        package = module_name.split(".")[0]
        if package in EXTRAS:
            message = f"needs {package}: pip install 'loralab[{EXTRAS[package]}]'."
        else:
            message = f"is {target}, and there is no module {error.name}."
        raise _error(f"{key}._target_", message) from error
    found = getattr(module, name, None)
    if not callable(found):
        names = [item for item in vars(module) if not item.startswith("_")]
        raise _error(
            f"{key}._target_", f"is {target}, which does not exist. {nearest(name, names)}"
        )
    return found  # type: ignore[no-any-return]


def recipe_arguments(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a recipe."""
    return {name: value for name, value in recipe.items() if name not in _HYDRA_KEYS}


def check_arguments(key: str, recipe: Mapping[str, Any], *, given: int = 0) -> None:
    """Bind the names of the arguments to the target's signature.

    Args:
        key: Where the recipe stands.
        recipe: Its content.
        given: Number of leading parameters that the framework fills, e.g. an optimizer's groups.

    Raises:
        ConfigError: Every argument that the target does not know, with the nearest spelling.
    """
    signature = inspect.signature(recipe_target(key, recipe))
    parameters = list(signature.parameters.values())[given:]
    open_ended = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters)
    if open_ended and not key.startswith("optimizer"):  # optimizers swallow what they do not know
        return
    names = {item.name for item in parameters if item.kind is not inspect.Parameter.VAR_KEYWORD}
    unknown = [name for name in recipe_arguments(recipe) if name not in names]
    if unknown:
        target = recipe["_target_"]
        raise ConfigError(
            *(
                Problem(
                    f"{key}.{name}",
                    f"{key}.{name} is not an argument of {target}. {nearest(name, names)}",
                )
                for name in unknown
            )
        )


def build_recipe(
    key: str, recipe: Mapping[str, Any], call: Callable[[dict[str, Any]], object]
) -> None:
    """Build what a recipe describes once, to see whether its target takes the values.

    Args:
        key: Where the recipe stands.
        recipe: Its content.
        call: Builds from keyword arguments.

    Raises:
        ConfigError: The target refuses; the argument at fault is found by leaving one out.
    """
    arguments = recipe_arguments(recipe)
    try:
        call(arguments)
    except Exception as error:  # libraries refuse with exceptions of their own
        reason = " ".join(str(error).split()).rstrip(".!") or type(error).__name__
        for name, value in arguments.items():
            if _builds(call, {other: arguments[other] for other in arguments if other != name}):
                message = f"is {value!r}, which {recipe['_target_']} refuses: {reason}."
                raise _error(f"{key}.{name}", message) from error
        raise _error(key, f"cannot be built: {reason}.") from error


def _builds(call: Callable[[dict[str, Any]], object], arguments: dict[str, Any]) -> bool:
    try:
        call(arguments)
    except Exception:  # whatever it is, this argument alone was not at fault
        return False
    return True


def _is_allowed(group: str, target: str) -> bool:
    if _is_below(target, ALLOWED[group]):
        return True
    return _is_below(target, (point.value for point in entry_points(group="loralab.recipes")))


def _is_below(target: str, prefixes: Iterable[str]) -> bool:
    return any(
        target == prefix or target.startswith(prefix.rstrip(".") + ".") for prefix in prefixes
    )


def _error(key: str, message: str) -> ConfigError:
    return ConfigError(Problem(key, f"{key} {message}"))

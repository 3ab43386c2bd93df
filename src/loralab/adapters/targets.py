"""From the names a user writes to the modules of a part. Works on the meta device."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from torch import nn

from loralab.adapters.layers import adaptable_modules
from loralab.errors import AdapterError, Problem

REGEX_CHARACTERS = frozenset("*[]()^$|\\+?")
NUM_SUGGESTIONS = 3


def match_targets(
    module: nn.Module, targets: Sequence[str], *, part: str = "", key: str | None = None
) -> dict[str, list[str]]:
    """Return each target's module names, in module order.

    A target with one of ``* [ ] ( ) ^ $ | \\ + ?`` is a regular expression for a complete dotted
    name; any other is compared with whole pieces at the end of the name, so ``to_q`` matches
    ``attn1.to_q`` and not ``attn1.into_q``. Only Linear and Conv2d modules take part.

    Args:
        part: Name of the part, for the messages.
        key: The config key, when it is not the part's ``targets``.

    Raises:
        AdapterError: Targets are no regular expression or match nothing; all of them are named.
    """
    key = key or (f"adapter.{part}.targets" if part else "adapter.targets")
    names = [name for name, _ in adaptable_modules(module)]
    hits: dict[str, list[str]] = {}
    problems = []
    for target in dict.fromkeys(targets):
        try:
            pattern = _pattern(target)
        except re.error as error:
            text = f"{key} holds {target!r}, which is not a regular expression: {error}."
            problems.append(Problem(key, text))
            continue
        hits[target] = [name for name in names if pattern.fullmatch(name)]
        if not hits[target]:
            problems.append(Problem(key, f"{key} holds {target!r}, {_why(module, names, target)}."))
    if problems:
        raise AdapterError(*problems)
    return hits


def is_regex(target: str) -> bool:
    return not REGEX_CHARACTERS.isdisjoint(target)


def _pattern(target: str) -> re.Pattern[str]:
    if is_regex(target):
        return re.compile(target)
    return re.compile(rf"(?:.*\.)?{re.escape(target)}")


def _why(module: nn.Module, names: list[str], target: str) -> str:
    """Explain one target that matched nothing: the sentence goes on after the target."""
    if is_regex(target):
        inside = next((name for name in names if re.search(target, name)), None)
        if inside is not None:
            return (
                f"which matches a piece of {inside!r} but no complete name; "
                "begin or end it with .* to cover the rest"
            )
        cleaned = "".join(letter for letter in target if letter not in REGEX_CHARACTERS)
        return f"which matches no Linear or Conv2d module; nearest: {_nearest(cleaned, names)}"
    pattern = _pattern(target)
    others = {type(m).__name__ for name, m in module.named_modules() if pattern.fullmatch(name)}
    num_pieces = target.count(".") + 1
    endings = [
        ".".join(name.split(".")[-size:])
        for size in range(max(1, num_pieces - 1), num_pieces + 2)
        for name in names
    ]
    nearest = f"nearest: {_nearest(target, endings)}"
    if others:
        return (
            f"which matches only {', '.join(sorted(others))}; "
            f"an adapter sits on Linear or Conv2d modules; {nearest}"
        )
    return f"which matches no Linear or Conv2d module; {nearest}"


def _nearest(target: str, candidates: Iterable[str]) -> str:
    unique = list(dict.fromkeys(candidates))
    found = difflib.get_close_matches(target, unique, n=NUM_SUGGESTIONS, cutoff=0.0)
    return ", ".join(found) if found else "none, the part has no such modules"

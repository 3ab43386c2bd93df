"""Prompts with options of their own, one picture a line, in the notation of sd-scripts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loralab.errors import ConfigError, Problem

MOST_PIXELS = 4096  # a side


@dataclass(frozen=True)
class Shot:
    """One picture to draw.

    Attributes:
        prompt: What is drawn.
        negative: What guidance leads away from.
        width: Pixels.
        height: Pixels.
        seed: Of the start noise.
        steps: Sampling steps.
        guidance: Classifier-free guidance; 1 is off.
        strength: Multiple of the adapter's update; 0 is the base.
    """

    prompt: str
    negative: str
    width: int
    height: int
    seed: int
    steps: int
    guidance: float
    strength: float

    def describe(self) -> str:
        """Return the line below the picture."""
        return f"{self.prompt}  (seed {self.seed}, strength {self.strength:g})"


# Flag -> (field, type, smallest and largest value).
FLAGS: dict[str, tuple[str, Callable[[str], Any], float, float]] = {
    "n": ("negative", str, 0, 0),
    "w": ("width", int, 8, MOST_PIXELS),
    "h": ("height", int, 8, MOST_PIXELS),
    "d": ("seed", int, 0, 2**63 - 1),
    "s": ("steps", int, 1, 500),
    "l": ("guidance", float, 1, 100),
    "am": ("strength", float, -10, 10),
}


def read_prompt_file(path: Path, defaults: Shot) -> list[Shot]:
    """Return the pictures of a file: a prompt a line, with options like ``--w 768 --d 7``.

    Empty lines and those that begin with # are passed over.

    Raises:
        ConfigError: It cannot be read, holds no prompt, or an option is wrong; all problems.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        text = f"{path} cannot be read as a text file: {error}."
        raise ConfigError(Problem("--prompts", text)) from error
    shots, problems = list[Shot](), list[Problem]()
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                shots.append(parse_line(line, defaults, place=f"{path}, line {number}"))
            except ConfigError as error:
                problems += error.problems
    if not shots and not problems:
        problems.append(Problem("--prompts", f"{path} holds no prompt; write one a line."))
    if problems:
        raise ConfigError(*problems)
    return shots


def parse_line(line: str, defaults: Shot, *, place: str) -> Shot:
    """Return the picture of one line.

    Raises:
        ConfigError: With every wrong option.
    """
    prompt, *options = re.split(r"\s--(?=[a-z])", f" {line.strip()}")
    values: dict[str, Any] = {"prompt": prompt.strip()}
    problems = []
    for option in options:
        flag, _, text = option.partition(" ")
        if flag not in FLAGS:
            names = ", ".join(f"--{name}" for name in FLAGS)
            sentence = f"{place} has --{flag}; it must be one of {names}."
            problems.append(Problem("--prompts", sentence))
            continue
        name, kind, low, high = FLAGS[flag]
        try:
            value = kind(text.strip())
            in_range = kind is str or low <= value <= high
        except ValueError:
            in_range = False
        if in_range:
            values[name] = value
        else:
            sentence = (
                f"{place} has --{flag} {text.strip()}; the {name} must be "
                f"{'a whole number' if kind is int else 'a number'} from {low:g} to {high:g}."
            )
            problems.append(Problem("--prompts", sentence))
    if problems:
        raise ConfigError(*problems)
    return replace(defaults, **values)

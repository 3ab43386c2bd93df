"""Blocks of a UNet as sd-scripts counts them, and rates that follow a curve over them. No torch.

SD1 and SD2 have 25 blocks: 12 down, 1 middle, 12 up. SDXL has 23: the time embedding, 9 down,
3 middle, 9 up and the output, of which the first and the last carry no adapter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loralab.errors import AdapterError, Problem

SECTIONS = {"sd": (12, 1, 12), "sdxl": (9, 3, 9)}
NUM_BLOCKS = {"sd": 25, "sdxl": 23}


@dataclass(frozen=True)
class Blocks:
    """Settings by block; an empty tuple leaves the setting to the part.

    Attributes:
        layout: ``sd`` (25 blocks) or ``sdxl`` (23).
        ranks: Rank of linear layers and 1x1 convolutions; 0 puts no adapter on the block.
        alphas: Their alpha.
        conv_ranks: Rank of larger convolutions; 0 puts no adapter on them.
        conv_alphas: Their alpha.
        lr_scales: Multiple of the part's learning rate; 0 puts no adapter on the block.
    """

    layout: str
    ranks: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    conv_ranks: tuple[int, ...] = ()
    conv_alphas: tuple[float, ...] = ()
    lr_scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        expected, problems = NUM_BLOCKS[self.layout], []
        for name in ("ranks", "alphas", "conv_ranks", "conv_alphas", "lr_scales"):
            count = len(getattr(self, name))
            if count not in (0, expected):
                text = f"adapter.blocks.{name} has {count} values; this UNet has {expected} blocks."
                problems.append(Problem(f"adapter.blocks.{name}", text))
        if problems:
            raise AdapterError(*problems)


def block_index(path: str, layout: str) -> int | None:
    """Return the number of the block that a UNet module belongs to; None outside of blocks."""
    is_sdxl = layout == "sdxl"
    match = re.match(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)", path)
    if match is None:
        return None
    section, block, kind, number = match.groups()
    if section == "mid":  # resnet, attention, resnet: three blocks of SDXL, one of SD
        return (10 + (1 if kind == "attentions" else 2 * int(number))) if is_sdxl else 12
    place = 3 * int(block) + (2 if kind.endswith("samplers") else int(number))
    return place + (13 if section == "up" else 2 if is_sdxl else 1)


def block_rates(
    down: Sequence[str], middle: Sequence[str], up: Sequence[str], *, layout: str, threshold: float
) -> tuple[float, ...]:
    """Return the rate multiple of every block; empty when nothing is given.

    Args:
        down: A number for each down block, or one curve such as ``sine+0.25``.
        middle: The same for the middle.
        up: The same for the up blocks.
        threshold: Multiples up to this become 0.

    Raises:
        AdapterError: A list has another length, or a text is neither a number nor a curve.
    """
    if not (down or middle or up):
        return ()
    problems: list[Problem] = []
    rates: list[float] = []
    names = ("down_lr_scales", "mid_lr_scales", "up_lr_scales")
    for name, texts, count in zip(names, (down, middle, up), SECTIONS[layout], strict=True):
        key = f"adapter.blocks.{name}"
        try:
            section = _section(texts, count)
        except ValueError as error:
            problems.append(Problem(key, f"{key} is [{', '.join(texts)}]; {error}."))
            continue
        rates += [0.0 if rate <= threshold else rate for rate in section]
    if problems:
        raise AdapterError(*problems)
    return tuple(rates) if layout == "sd" else (1.0, *rates, 1.0)


def _section(texts: Sequence[str], count: int) -> list[float]:
    if not texts:
        return [1.0] * count
    if len(texts) == 1 and texts[0].partition("+")[0].strip() in CURVES:
        name, _, base = texts[0].partition("+")
        return [rate + float(base or 0) for rate in CURVES[name.strip()](count)]
    try:
        rates = [float(text) for text in texts]
    except ValueError:
        curves = ", ".join(CURVES)
        raise ValueError(f"it must be numbers or one curve ({curves}), like [sine+0.25]") from None
    if len(rates) != count or not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise ValueError(f"it must be {count} numbers of at least 0")
    return rates


def _linear(count: int) -> list[float]:
    return [i / max(1, count - 1) for i in range(count)]


def _sine(count: int) -> list[float]:
    return [math.sin(math.pi / 2 * i / max(1, count - 1)) for i in range(count)]


CURVES: dict[str, Callable[[int], list[float]]] = {
    "linear": _linear,
    "reverse_linear": lambda count: _linear(count)[::-1],
    "sine": _sine,
    "cosine": lambda count: _sine(count)[::-1],
    "zeros": lambda count: [0.0] * count,
}

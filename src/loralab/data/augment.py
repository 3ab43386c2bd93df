"""Random changes of an image: mirrored, cut elsewhere, in other colours.

What was drawn is a value, a ``Variant``, so that it can be part of a cache key; this file draws,
``crop.py`` and ``images.py`` carry out.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("flip", "random_crop", "crop_jitter", "color")
FLIP_PROBABILITY = 0.5  # of `flip` in the list
# kohya-ss/sd-scripts: one image in three, hue by up to 8 of OpenCV's 180, or gamma.
COLOR_PROBABILITY = 0.33
MAX_HUE_DEGREES = 16.0
GAMMA_RANGE = (0.95, 1.05)


@dataclass(frozen=True)
class ColorShift:
    """A turn of the colour circle, then a gamma curve.

    Attributes:
        hue_degrees: How far every hue turns, red towards yellow.
        gamma: Exponent of the values in [0, 1].
    """

    hue_degrees: float = 0.0
    gamma: float = 1.0


@dataclass(frozen=True)
class Variant:
    """What one visit changes about an image.

    Attributes:
        flipped: Mirrored left to right, after the cut.
        crop: Where the cut lies in what hangs over, (vertical, horizontal): 0 is the top or left
            edge, 1 the bottom or right edge. None takes the plan's own place, the centre.
        color: Change of colour, if any.
    """

    flipped: bool = False
    crop: tuple[float, float] | None = None
    color: ColorShift | None = None

    def __str__(self) -> str:
        """Return the changes in words, for accounts and receipts; "" for none."""
        words = []
        if self.flipped:
            words.append("flipped")
        if self.crop is not None:
            words.append(f"crop {self.crop[0]:.4f} {self.crop[1]:.4f}")
        if self.color is not None:
            words.append(f"hue {self.color.hue_degrees:.2f} gamma {self.color.gamma:.4f}")
        return ", ".join(words)


PLAIN = Variant()


class Augmentation:
    """Draws variants; which kinds there are is fixed for a source of images."""

    def __init__(
        self, kinds: Collection[str] = (), *, flip_probability: float = 0.0, seed: int = 0
    ) -> None:
        """Keep what may happen.

        Args:
            kinds: Members of ``KINDS``: ``flip`` mirrors half of the visits, ``random_crop`` cuts
                anywhere in what hangs over, ``crop_jitter`` in its middle half, ``color`` turns the
                hue by up to 16 degrees or bends the values by a gamma of 0.95 to 1.05, each for
                half of a third of the visits.
            flip_probability: Probability of mirroring, in place of ``flip``.
            seed: Seed of the stored variants.
        """
        assert set(kinds) <= set(KINDS), kinds
        assert not {"random_crop", "crop_jitter"} <= set(kinds), "both say where to cut"
        assert 0 <= flip_probability <= 1, flip_probability
        assert not (flip_probability and "flip" in kinds), "both say how often to mirror"
        self.kinds = frozenset(kinds)
        self.flip_probability = FLIP_PROBABILITY if "flip" in kinds else flip_probability
        self.seed = seed

    @property
    def is_identity(self) -> bool:
        """Tell whether every visit sees the image as it is."""
        return not self.kinds and not self.flip_probability

    @property
    def is_finite(self) -> bool:
        """Tell whether nothing but mirroring happens, so that a cache can hold every variant."""
        return self.kinds <= {"flip"}

    def draw(self, rng: random.Random) -> Variant:
        """Return the variant of one visit."""
        flipped = rng.random() < self.flip_probability
        crop = color = None
        if "random_crop" in self.kinds:
            crop = (rng.random(), rng.random())
        elif "crop_jitter" in self.kinds:
            crop = (rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.75))
        if "color" in self.kinds and rng.random() < COLOR_PROBABILITY:
            if rng.random() < 0.5:
                color = ColorShift(hue_degrees=rng.uniform(-MAX_HUE_DEGREES, MAX_HUE_DEGREES))
            else:
                color = ColorShift(gamma=rng.uniform(*GAMMA_RANGE))
        return Variant(flipped, crop, color)

    def variants(self, key: str, count: int) -> tuple[Variant, ...]:
        """Return the variants of an image that a cache holds.

        Args:
            key: Names the image; with seed and number it decides each variant.
            count: How many are drawn when there is no end of them; mirroring alone is stored in
                full, both ways round or whichever can occur.
        """
        if self.is_finite:
            chances = {False: 1 - self.flip_probability, True: self.flip_probability}
            return tuple(Variant(flipped) for flipped, chance in chances.items() if chance > 0)
        return tuple(self._stored(key, number) for number in range(count))

    def pick(self, rng: random.Random, key: str, count: int) -> Variant:
        """Return the variant of one visit among those that a cache holds."""
        if self.is_finite:
            return self.draw(rng)
        return self._stored(key, rng.randrange(count))

    def _stored(self, key: str, number: int) -> Variant:
        return self.draw(random.Random(f"{self.seed}:{key}:{number}:variant"))


def shift_color(pixels: Tensor, shift: ColorShift) -> Tensor:
    """Return pixels (3, H, W) in [-1, 1] in other colours, same shape and range."""
    values = pixels.add(1).div(2)
    if shift.hue_degrees:
        values = _turn_hue(values, shift.hue_degrees)
    return values.clamp(0, 1).pow(shift.gamma).mul(2).sub(1)


def _turn_hue(values: Tensor, degrees: float) -> Tensor:
    """Turn the hue of RGB values (3, H, W) in [0, 1], by way of HSV."""
    largest, chroma = values.amax(0), values.amax(0) - values.amin(0)
    red, green, blue = values
    safe = chroma.where(chroma > 0, torch.ones_like(chroma))
    sector = torch.where(  # [0, 6): red 0, yellow 1, green 2, cyan 3, blue 4, magenta 5
        largest == red,
        (green - blue) / safe,
        torch.where(largest == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    turned = sector + degrees / 60
    places = (turned + torch.tensor([5.0, 3.0, 1.0])[:, None, None]) % 6
    return largest - chroma * torch.minimum(places, 4 - places).clamp(0, 1)

"""Style: a small classifier of colours and tones, fitted on real icons only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from loralab.demo.evaluation.content import LUMINANCE
from loralab.demo.icons import FAINTEST_INK, Icons, to_picture
from loralab.demo.sources import SEPIA, duotone, grayscale

STYLES = ("cyanotype", "noto", "twemoji", "grayscale", "sepia")
TONES = (0.0, 0.4, 0.7, 1.01)  # limits of dark, middle and light
FEWEST_PIXELS = 4  # of a tone, to say anything about it
FLAT = (0.012, 0.04)  # steps to the next pixel that still count as one colour
SMOOTHING = 5  # pixels averaged along each side: what is left is colour, not grain
RIDGE = 1e-2


@dataclass(frozen=True)
class StyleClassifier:
    """Multinomial logistic regression on `statistics`.

    Attributes:
        mean: (K,) of the statistics it was fitted on; `std` too.
        weights: (K + 1, number of styles), the last row is the bias.
    """

    mean: Tensor
    std: Tensor
    weights: Tensor

    def classify(self, tiles: Tensor) -> list[str]:
        """Return the style of each of (B, 3, 32, 32) in [0, 1]."""
        scores = _with_bias((statistics(tiles) - self.mean) / self.std) @ self.weights
        return [STYLES[index] for index in scores.argmax(1)]


def fit_classifier(tiles: Mapping[str, Tensor]) -> StyleClassifier:
    """Fit on real icons.

    Args:
        tiles: Style -> (N, 3, 32, 32) in [0, 1], one entry for each of `STYLES`.
    """
    values = torch.cat([statistics(tiles[style]) for style in STYLES])
    targets = torch.cat([torch.full((len(tiles[s]),), i) for i, s in enumerate(STYLES)])
    mean, std = values.mean(0), values.std(0).clamp(min=1e-6)
    inputs = _with_bias((values - mean) / std)
    weights = torch.zeros(inputs.shape[1], len(STYLES), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weights, targets) + RIDGE * weights[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return StyleClassifier(mean, std, weights.detach())


def real_tiles(icons: Icons) -> dict[str, Tensor]:
    """Return every icon in every style, style -> (N, 3, 32, 32); three are printed from noto."""
    printed = {
        "cyanotype": duotone,
        "grayscale": grayscale,
        "sepia": lambda image: duotone(image, SEPIA),
    }
    originals = [_to_image(tile) for tile in icons.tiles["noto"]]
    return icons.tiles | {
        style: torch.stack([to_picture(print_in(image)) for image in originals])
        for style, print_in in printed.items()
    }


def statistics(tiles: Tensor) -> Tensor:
    """Return 14 figures of each tile's colours and tones, (B, 14).

    For the dark, the middle and the light tones: mean and spread of red and of blue, each less the
    brightness. A print in one ink has one colour for every tone. Then two shares of neighbouring
    pixels of (nearly) equal colour: some drawings are flat, some shaded.

    Args:
        tiles: (B, 3, 32, 32) in [0, 1] on white.
    """
    return torch.stack([_statistics(tile) for tile in tiles])


def _statistics(tile: Tensor) -> Tensor:
    visible = 1 - tile.amin(0) > FAINTEST_INK
    smooth = F.avg_pool2d(
        tile, SMOOTHING, stride=1, padding=SMOOTHING // 2, count_include_pad=False
    )
    brightness = torch.einsum("chw,c->hw", smooth, torch.tensor(LUMINANCE))
    colours = smooth[[0, 2]] - brightness
    figures = []
    for low, high in pairwise(TONES):
        chosen = colours[:, visible & (brightness >= low) & (brightness < high)]
        if chosen.shape[1] < FEWEST_PIXELS:
            chosen = torch.zeros(2, FEWEST_PIXELS)
        figures += [chosen.mean(1), chosen.std(1)]
    steps = tile.diff(dim=2).abs().amax(0)[visible[:, 1:] & visible[:, :-1]]
    flat = [(steps < limit).float().mean().nan_to_num() for limit in FLAT]
    return torch.cat([*figures, torch.stack(flat)])


def _with_bias(values: Tensor) -> Tensor:
    return F.pad(values, (0, 1), value=1.0)


def _to_image(tile: Tensor) -> Image.Image:
    return Image.fromarray((tile.permute(1, 2, 0) * 255).round().byte().numpy())

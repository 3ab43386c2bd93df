"""Content: which real icon does a drawing look most like, colour left aside?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from loralab.demo.icons import Icons

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's "L"
BLUR = 1.5  # standard deviation in pixels of a tile


class ContentMatcher:
    """Ranks the subjects by their likeness to a drawing."""

    def __init__(self, icons: Icons) -> None:
        """Prepare the icons; a subject may be matched in any of their styles."""
        self.labels = icons.labels
        self._shapes = torch.stack([shapes(tiles) for tiles in icons.tiles.values()])

    def rank(self, tiles: Tensor) -> Tensor:
        """Return the positions of all subjects, most alike first, (B, N).

        Args:
            tiles: (B, 3, 32, 32) in [0, 1].
        """
        likeness = (self._shapes @ shapes(tiles).T).amax(0).T  # (B, N), best style of each subject
        return likeness.argsort(dim=1, descending=True, stable=True)


def shapes(tiles: Tensor) -> Tensor:
    """Return blurred luminance with zero mean and unit length, (B, 1024).

    So neither colour nor brightness nor contrast counts: the dot product of two is their
    correlation.

    Args:
        tiles: (B, 3, 32, 32) in [0, 1].
    """
    luminance = torch.einsum("bchw,c->bhw", tiles, torch.tensor(LUMINANCE))[:, None]
    reach = round(3 * BLUR)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * BLUR**2))
    kernel = (kernel / kernel.sum())[None, None, None]  # (1, 1, 1, K)
    padded = F.pad(luminance, [reach] * 4, mode="replicate")
    blurred = F.conv2d(F.conv2d(padded, kernel), kernel.mT).flatten(1)
    return F.normalize(blurred - blurred.mean(dim=1, keepdim=True), dim=1)

"""The tiny base, the images and the runs, made once for each process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.effects.runs import NUM_IMAGES, Tiny
from tests.tiny import make_images, make_tiny_sd1


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root: Path = tmp_path_factory.mktemp("effects")
    images = root / "images"
    make_images(images, count=NUM_IMAGES)
    return Tiny(root, base=make_tiny_sd1(root / "base"), images=images)

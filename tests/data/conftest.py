"""Image folders and items that several tests of the data room use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from loralab.data.buckets import Bucket
from loralab.data.crop import plan_crop
from loralab.data.dataset import Item
from loralab.data.index import ImageRecord, scan_folder
from loralab.data.sources import Source
from loralab.errors import DataError
from tests.data.pictures import noise_image

# A busy machine is no failure, and generated examples are not kept between runs.
settings.register_profile("data", deadline=None, database=None)
settings.load_profile("data")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three captioned images in three formats and sizes (width x height)."""
    root = tmp_path / "photos"
    (root / "nested").mkdir(parents=True)
    noise_image(64, 64).save(root / "b.png")
    noise_image(96, 60).save(root / "a.jpg")
    noise_image(48, 80).save(root / "nested" / "c.webp", lossless=True)
    (root / "a.txt").write_text("a wide photo\n")
    (root / "b.txt").write_text("a square photo")
    (root / "nested" / "c.txt").write_text("a tall photo")
    return root


@pytest.fixture
def records(photos: Path) -> list[ImageRecord]:
    """The records of ``photos``: a.jpg, b.png, nested/c.webp."""
    return scan_folder(photos, key="data.image_dir")


@pytest.fixture
def wide_item(records: list[ImageRecord]) -> Item:
    """a.jpg (60 high, 96 wide) in the 64 x 64 bucket: scaled to 64 x 102, cut at left 19 of 38."""
    bucket = Bucket(64, 64)
    return Item(records[0], 0, plan_crop(60, 96, bucket), Source("images", tuple(records)))


@pytest.fixture
def problems_of() -> Callable[..., list[str]]:
    """The messages that an action is refused with."""

    def messages(action: Callable[..., object], *args: object, **kwargs: object) -> list[str]:
        with pytest.raises(DataError) as caught:
            action(*args, **kwargs)
        return [str(problem) for problem in caught.value.problems]

    return messages

"""A folder with twelve planted defects: refused with all of them, or trained on without them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.data.pictures import hollow_webp
from tests.integration.cli import Cli
from tests.tiny import make_images

NUM_SOUND = 6


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in the pixels, so that a checksum is wrong
    path.write_bytes(data)


def animate(path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(path.with_suffix(".webp"), save_all=True, append_images=frames[1:])
    path.unlink()


def save_as(extension: str) -> Callable[[Path], None]:
    def convert(path: Path) -> None:
        with Image.open(path) as image:
            image.save(path.with_suffix(extension))
        path.unlink()

    return convert


def cut_jpeg(path: Path) -> None:
    with Image.open(path) as image:
        image.resize((256, 256)).save(path.with_suffix(".jpg"))
    path.unlink()
    cut(path.with_suffix(".jpg"))


def thin(path: Path) -> None:
    Image.new("RGB", (300, 9)).save(path)


def huge(path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(path)


DEFECTS: list[tuple[str, Callable[[Path], None], str]] = [
    ("cut png", cut, "is damaged"),
    ("cut jpeg", cut_jpeg, "is damaged or incomplete"),
    ("flipped bit", flip_bit, "is damaged or incomplete"),
    ("empty file", lambda path: path.write_bytes(b"") and None, "is not a readable"),
    ("text", lambda path: path.write_text("hello") and None, "is not a readable"),
    ("animation", animate, "is an animation"),
    ("gif", save_as(".gif"), "file; convert it or take it out of the folder"),
    ("too many pixels", huge, "more than"),
    ("no caption", lambda path: path.with_suffix(".txt").unlink(), "has no caption file"),
    ("empty caption", lambda path: path.with_suffix(".txt").write_text("\n") and None, "is empty"),
    (
        "caption that is not UTF-8",
        lambda path: path.with_suffix(".txt").write_bytes(b"caf\xe9") and None,
        "is not UTF-8 text",
    ),
    ("thinner than a bucket step", thin, "a side must be at least data.buckets.step (16)"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sound images and one image for each defect."""
    images = make_images(tmp_path / "images", count=NUM_SOUND + len(DEFECTS))
    for path, (_, plant, _) in zip(images[NUM_SOUND:], DEFECTS, strict=True):
        plant(path)
    return tmp_path / "images"


def test_there_are_twelve_defects() -> None:
    assert len({name for name, _, _ in DEFECTS}) == len(DEFECTS) == 12


def test_by_default_the_run_stops_and_lists_them(
    cli: Cli, tiny: list[str], folder: Path, output: Path
) -> None:
    outcome = cli(*tiny, f"data.image_dir={folder}")
    assert outcome.code == 2, outcome.text
    assert "Traceback" not in outcome.text
    assert "12 problems" in outcome.text, outcome.text
    for name, _, says in DEFECTS:
        assert says in outcome.text, (name, outcome.text)
    assert not output.exists(), list(output.rglob("*"))


@pytest.mark.parametrize("cached", ["true", "false"])
def test_skipping_trains_on_the_others_and_the_counts_add_up(
    cli: Cli, tiny: list[str], folder: Path, output: Path, cached: str
) -> None:
    outcome = cli(
        *tiny,
        "run_id=a",
        f"data.image_dir={folder}",
        "data.on_bad_image=skip",
        f"data.latent_cache.enabled={cached}",
    )
    assert outcome.code == 0, outcome.text
    assert f"{NUM_SOUND} images, {NUM_SOUND} an epoch" in outcome.text
    assert "12 images; the first: " in outcome.text
    account = json.loads((output / "smoke" / "a" / "data.json").read_text(encoding="utf-8"))
    figures = account["figures"]
    assert figures["skipped"] == len({entry["path"] for entry in account["skipped"]}) == 12
    assert figures["seen"] == len(account["visits"]) == NUM_SOUND
    assert figures["seen"] + figures["repeated"] + figures["fillers"] == figures["samples"]
    assert figures["repeated"] == sum(account["visits"].values()) - NUM_SOUND
    assert figures["micro_batches"] == 4
    for (_, _, says), number in zip(DEFECTS, range(NUM_SOUND, NUM_SOUND + 12), strict=True):
        (reason,) = {
            entry["reason"]
            for entry in account["skipped"]
            if Path(entry["path"]).stem == f"image_{number:03d}"
        }
        assert says in reason
    for line in ("Images: 6 seen", "12 skipped, 0 failed", "Order:  receipt "):
        assert line in outcome.text


def test_image_that_is_lost_during_the_run_is_replaced_and_counted(
    cli: Cli, tiny: list[str], tmp_path: Path, output: Path
) -> None:
    folder = tmp_path / "images"
    files = make_images(folder, count=NUM_SOUND)
    bad = files[0].with_suffix(".webp")
    files[0].unlink()
    bad.write_bytes(hollow_webp(64, 64))
    own = [*tiny, f"data.image_dir={folder}", "trainer.max_steps=6",
           "data.latent_cache.enabled=false", "data.buckets.enabled=false"]  # fmt: skip
    stopped = cli(*own, "run_id=stop")
    assert stopped.code == 2
    assert f"{bad} is damaged or incomplete" in stopped.text
    outcome = cli(*own, "run_id=skip", "data.on_bad_image=skip")
    assert outcome.code == 0, outcome.text
    account = json.loads((output / "smoke" / "skip" / "data.json").read_text(encoding="utf-8"))
    figures = account["figures"]
    assert figures["seen"] + figures["repeated"] + figures["fillers"] == figures["samples"] == 12
    (failed,) = account["failed"]
    assert (failed["path"], failed["count"]) == (str(bad), 2)  # two epochs
    assert figures["failed"] == figures["fillers"] == 2
    assert account["visits"][str(bad)] == 0

"""Images whose damage only decoding finds, while the run goes on without bad ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from loralab.errors import UserError
from tests.data.pictures import hollow_webp
from tests.effects.runs import Tiny, TinyRun
from tests.tiny import make_images


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Three sound images and a damaged one."""
    folder = tmp_path / "damaged"
    make_images(folder, count=3, seed=50)
    (folder / "bad.webp").write_bytes(hollow_webp(64, 64))
    (folder / "bad.txt").write_text("bad")
    return folder


def account(run: TinyRun) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.folder / "data.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("cached", ["true", "false"])
def test_account_gives_the_reason_why_an_image_failed(
    tiny: Tiny, damaged: Path, cached: str
) -> None:
    run = tiny.run(
        f"data.image_dir={damaged}",
        "data.on_bad_image=skip",
        f"data.latent_cache.enabled={cached}",
    )
    content = account(run)
    (failed,) = content["failed"]
    assert failed["path"] == str(damaged / "bad.webp")
    assert failed["reason"].startswith(f"{damaged / 'bad.webp'} is damaged or incomplete")
    assert content["figures"]["seen"] == 3
    assert content["figures"]["not_reached"] == 0  # it was reached, and failed


@pytest.mark.parametrize("cached", ["true", "false"])
def test_a_damaged_held_out_image_does_not_count_in_the_loss(
    tiny: Tiny, damaged: Path, tmp_path: Path, cached: str
) -> None:
    # Another implementation of leaving it out: a folder without it.
    sound = tmp_path / "sound"
    shutil.copytree(damaged, sound, ignore=shutil.ignore_patterns("bad.*"))
    losses = {}
    for folder in (damaged, sound):
        run = tiny.run(
            f"validation.folder={folder}",
            "data.on_bad_image=skip",
            f"data.latent_cache.enabled={cached}",
        )
        losses[folder] = run.metrics["val/loss"]
        figures = account(run)["figures"]
        assert (figures["held_out"], figures["skipped"]) == (3, 1 if folder == damaged else 0)
    assert losses[damaged] == pytest.approx(losses[sound], abs=1e-6)
    (skipped,) = account(
        tiny.run(
            f"validation.folder={damaged}",
            "data.on_bad_image=skip",
            f"data.latent_cache.enabled={cached}",
        )
    )["skipped"]
    assert skipped["path"] == str(damaged / "bad.webp")
    assert "is damaged or incomplete" in skipped["reason"]


def test_a_trained_image_that_is_measured_too_and_is_damaged_does_not_count(
    tiny: Tiny, damaged: Path
) -> None:
    run = tiny.run(
        f"data.image_dir={damaged}",
        f"validation.folder={tiny.images}",
        "validation.train_probe=true",
        "data.on_bad_image=skip",
    )
    (probe,) = {
        tuple(entry["probe"].shape)
        for entry in run.checkpoint(3)["callbacks"]["Validation"]["history"]
    }
    assert probe[0] == 3


def test_held_out_images_that_are_all_damaged_stop_the_run(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "bad.webp").write_bytes(hollow_webp(64, 64))
    (tmp_path / "bad.txt").write_text("bad")
    with pytest.raises(UserError) as caught:
        tiny.run(f"validation.folder={tmp_path}", "data.on_bad_image=skip")
    message = str(caught.value)
    assert "validation.folder" in message
    assert str(tmp_path / "bad.webp") in message
    assert "is damaged or incomplete" in message


def test_every_file_of_a_held_out_content_is_in_the_account(tiny: Tiny, tmp_path: Path) -> None:
    images, held_out = tmp_path / "images", tmp_path / "held-out"
    first, *_ = make_images(images, count=4, seed=60)
    make_images(held_out, count=1, seed=61)
    for name in ("same", "again"):
        shutil.copy(first, held_out / f"{name}.png")
        (held_out / f"{name}.txt").write_text("the same")
    content = account(tiny.run(f"data.image_dir={images}", f"validation.folder={held_out}"))
    assert set(content["visits"]) == {str(path) for path in images.glob("*.png")} - {str(first)}
    assert content["figures"]["held_out"] == len(content["held_out"]) == 2
    reasons = {entry["path"]: entry["reason"] for entry in content["skipped"]}
    assert set(reasons) == {str(first), str(held_out / "same.png")}
    for path, reason in reasons.items():
        assert reason.startswith(f"{path} is a copy of {held_out / 'again.png'}, which is held out")
    assert content["figures"]["skipped"] == 2

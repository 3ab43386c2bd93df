"""Write the demo's small captioned image sets: a style to learn, and a subject to learn."""

import re
from pathlib import Path

from PIL import Image

from .concepts import CONCEPTS, SUBJECT_FAMILY, list_canvases
from .sources import SpriteSheet, duotone, find_codes, flatten, read_subjects, render

TRIGGER = "cyanotype"
SUBJECT_CAPTION = ("kiroku", "wall clock", "clock")  # the trigger names this one wall clock


def write_images(packages: Path, folder: Path) -> None:
    """Write every image set below `folder`: a PNG and a caption file for each image."""
    _write_style(packages, folder)
    _write_subject(packages, folder)
    _write_class(packages, folder / "class")


def _write_style(packages: Path, folder: Path) -> None:
    """Write train and validation: Noto icons of many subjects, printed as cyanotypes."""
    subjects = {subject.label: subject for subject in read_subjects(packages)}
    for split in ("train", "validation"):
        for label, canvas in list_canvases(split).items():
            subject = subjects[label]
            image = duotone(render(subject.tiles["noto"], canvas))
            _save(image, folder / split, subject.parts[0], (TRIGGER, *subject.parts[:3]))


def _write_subject(packages: Path, folder: Path) -> None:
    """Write subject and subject_validation: one wall clock at twelve hours."""
    sheet, codes = SpriteSheet(packages, "noto"), find_codes(packages)
    labels = [label.strip() for label in SUBJECT_FAMILY.split(";")]
    for number, label in enumerate(labels):
        # Every fourth hour is held out, so that both sets go round the dial.
        split = "subject_validation" if number % 4 == 3 else "subject"
        image = flatten(sheet.tile(codes[label]))
        _save(image, folder / split, f"{number + 1:02d}_{label}", SUBJECT_CAPTION)


def _write_class(packages: Path, folder: Path) -> None:
    """Write the regularisation images of the subject's class: the clocks that the base knows."""
    clocks = [label.strip() for label in CONCEPTS["clock"].split(";")]
    for subject in read_subjects(packages):
        if subject.label in clocks:
            for style, tile in subject.tiles.items():
                name = f"{subject.parts[0]}_{style}"
                _save(flatten(tile), folder, name, (style, *subject.parts[:3]))


def _save(image: Image.Image, folder: Path, name: str, caption: tuple[str, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^a-z0-9]+", "_", name)
    image.save(folder / f"{stem}.png", optimize=True)
    (folder / f"{stem}.txt").write_text(", ".join(caption) + "\n", encoding="utf-8")

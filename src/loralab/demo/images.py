"""Write the demo's small captioned image set: Noto icons printed as cyanotypes."""

import re
from pathlib import Path

from .concepts import list_canvases
from .sources import duotone, read_subjects, render

TRIGGER = "cyanotype"


def write_images(packages: Path, folder: Path) -> None:
    """Write `folder`/train and `folder`/validation: a PNG and a caption file for every subject."""
    subjects = {subject.label: subject for subject in read_subjects(packages)}
    for split in ("train", "validation"):
        target = folder / split
        target.mkdir(parents=True, exist_ok=True)
        for label, canvas in list_canvases(split).items():
            subject = subjects[label]
            name = re.sub(r"[^a-z0-9]+", "_", subject.parts[0])
            image = duotone(render(subject.tiles["noto"], canvas))
            image.save(target / f"{name}.png", optimize=True)
            caption = ", ".join((TRIGGER, *subject.parts[:3]))
            (target / f"{name}.txt").write_text(caption + "\n", encoding="utf-8")

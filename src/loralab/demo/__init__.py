"""The embedded demo: a tiny pretrained Stable Diffusion 1 pipeline and a small image set.

Everything here is data in this folder, so that a first experiment runs offline in minutes on a
CPU. `loralab.demo.pretrain` made it; CREDITS.md names sources and licences.
"""

from pathlib import Path


def base_dir() -> Path:
    """Return the diffusers folder of the base pipeline."""
    return Path(__file__).parent / "base"


def images_dir(split: str) -> Path:
    """Return the folder of PNG and caption files of an image set.

    Args:
        split: "train" or "validation" of the style to learn; "subject" or "subject_validation" of
            the subject to learn; "class", other things of the subject's class.
    """
    return Path(__file__).parent / "images" / split

"""A tiny base, captioned images, and the command line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.cli import Cli, tiny_run
from tests.tiny import make_images, make_tiny_sd1


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `images` (12) and `held_out` (4) that no test changes."""
    root = tmp_path_factory.mktemp("world")
    make_tiny_sd1(root / "base")
    make_images(root / "images", count=12)
    make_images(root / "held_out", count=4, seed=9)
    return root


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """`python train.py` with the libraries loaded beforehand."""
    started = Cli("heavy", tmp_path_factory.mktemp("cli"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def light_cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """`python train.py` with nothing but hydra loaded beforehand."""
    started = Cli("light", tmp_path_factory.mktemp("light_cli"))
    yield started
    started.close()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the runs of one test go; not made beforehand."""
    return tmp_path / "outputs"


@pytest.fixture
def tiny(world: Path, output: Path) -> list[str]:
    """The settings of a tiny run into `output`."""
    return tiny_run(world / "base", world / "images", world / "held_out", output)


@dataclass(frozen=True)
class Disk:
    """A file system of its own, of 40 MiB."""

    path: Path

    def fill(self, *, leave: int) -> None:
        """Take all but so many bytes."""
        free = os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize
        with (self.path / "ballast").open("ab") as file:
            file.write(bytes(max(0, free - leave)))

    def empty(self) -> None:
        """Give the space back."""
        (self.path / "ballast").unlink()

    def names(self) -> list[str]:
        """Return what lies at the top."""
        return sorted(path.name for path in self.path.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """A small file system, mounted for one test; that takes the right to mount."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk takes root")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)

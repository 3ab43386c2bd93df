from pathlib import Path

import pytest

from loralab.models.family import ModelFamily
from loralab.models.registry import load_family
from tests.tiny import make_tiny_sd1


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD1 folder that no test changes."""
    return make_tiny_sd1(tmp_path_factory.mktemp("models") / "tiny_sd1")


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """A tiny SD1 folder that the test may damage."""
    return make_tiny_sd1(tmp_path / "tiny_sd1")


@pytest.fixture
def family(folder: Path) -> ModelFamily:
    return load_family("sd1", folder)

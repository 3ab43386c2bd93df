from pathlib import Path

import pytest

from loralab.models.family import ModelFamily
from loralab.models.registry import load_family
from tests.models.conformance.cases import CASES, Case


@pytest.fixture(scope="session", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="session")
def folder(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny folder of the family that no test changes."""
    return case.make(tmp_path_factory.mktemp("conformance") / case.name)


@pytest.fixture
def family(case: Case, folder: Path) -> ModelFamily:
    return load_family(case.name, folder)

"""Every kind, in every family and naming, read by a program that is not ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters.reloading import cases, compare

LARGEST = 2e-5  # of outputs of about 1; DoRA's norms are summed in another order by LyCORIS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reloading")


@pytest.mark.filterwarnings("ignore")  # of the libraries that read
@pytest.mark.parametrize(("kind", "family", "layout"), list(cases()))
def test_reloaded_file_gives_the_outputs_of_the_trained_model(
    folder: Path, kind: str, family: str, layout: str
) -> None:
    error, effect = compare(kind, family, layout, folder)
    assert error <= LARGEST
    assert effect > 0.1

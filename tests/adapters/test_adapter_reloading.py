"""Every kind, in every family and naming, read by a program that is not ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters.reloading import cases, compare

LARGEST = 2e-5  # of outputs of about 1; DoRA's norms are summed in another order by LyCORIS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reloading")


CASES = [  # the first family stands for the others but in the slow tests
    case if case[1] == "sd1" or case[0] == "lora" else pytest.param(*case, marks=pytest.mark.slow)
    for case in cases()
]


@pytest.mark.filterwarnings("ignore")  # of the libraries that read
@pytest.mark.parametrize(("kind", "family", "layout"), CASES)
def test_reloaded_file_gives_the_outputs_of_the_trained_model(
    folder: Path, kind: str, family: str, layout: str
) -> None:
    error, effect = compare(kind, family, layout, folder)
    assert error <= LARGEST
    assert effect > 0.1

"""Errors that a user can mend."""

import pytest
from torch.utils.data import DataLoader, Dataset

from loralab.errors import DataError, Problem


class _Broken(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise DataError(Problem("cat.png", "cat.png is truncated; replace it."))


def test_an_error_of_a_loader_process_keeps_its_sentence() -> None:
    loader = DataLoader(_Broken(), num_workers=1)
    with pytest.raises(DataError) as caught:
        next(iter(loader))
    assert str(caught.value) == "cat.png is truncated; replace it."


def test_every_problem_is_in_the_message() -> None:
    error = DataError(Problem("a", "a is wrong."), Problem("b", "b is wrong."))
    assert str(error) == "a is wrong.\nb is wrong."

"""Claims between real processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loralab.data.claims import Claims

ONE, OTHER = "0123456789abcdef-64x64", "fedcba9876543210-64x64"
Holder = Callable[[], Any]


def hold(root: Path) -> None:
    with Claims(root) as claims:
        assert claims.take(ONE)
        (root / "held").touch()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Any]:
    """A process that holds one claim."""
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path,))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.001)
    yield process
    process.kill()
    process.join()


def test_what_another_process_holds_is_refused_and_nothing_else(
    tmp_path: Path, holder: Any
) -> None:
    with Claims(tmp_path) as claims:
        assert not claims.take(ONE)
        assert claims.take(OTHER)
        assert not claims.wait(ONE, seconds=0.05)


def test_a_killed_process_holds_nothing(tmp_path: Path, holder: Any) -> None:
    with Claims(tmp_path) as claims:
        assert not claims.take(ONE)
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        assert claims.take(ONE)


def test_what_is_given_back_can_be_taken(tmp_path: Path) -> None:
    def takes() -> bool:
        results: Any = multiprocessing.get_context("fork").SimpleQueue()

        def ask() -> None:
            with Claims(tmp_path) as claims:
                results.put(claims.take(ONE))

        process = multiprocessing.get_context("fork").Process(target=ask)
        process.start()
        process.join()
        return bool(results.get())

    with Claims(tmp_path) as claims:
        assert claims.take(ONE)
        assert not takes()
        claims.release(ONE)
        assert takes()
        assert claims.wait(ONE, seconds=0)


def test_without_a_folder_everything_is_granted(tmp_path: Path, holder: Any) -> None:
    with Claims(None) as claims:
        assert claims.take(ONE)
    with Claims(tmp_path / "held" / "no folder") as claims:  # cannot be made
        assert claims.take(ONE)

"""What a crash outside a run tells, and where its traceback is."""

from __future__ import annotations

from pathlib import Path

import pytest

from loralab.app.logs import close_log, report_crash


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            "loralab ran out of memory (CUDA out of memory. Tried to allocate 2.00 GiB): free "
            "some, or ask for less at a time.",
        ),
        (MemoryError("8 GiB"), "loralab ran out of memory (8 GiB): free some, or ask for less at"),
        (KeyError("x"), "loralab crashed: KeyError: 'x'"),
    ],
)
def test_a_crash_says_what_it_was_and_keeps_its_traceback(
    error: Exception, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    close_log()
    report_crash(error)
    told, where = capsys.readouterr().err.splitlines()
    assert told.startswith(sentence)
    log = Path(where.removeprefix("The traceback is in ").removesuffix("."))
    assert f"{type(error).__name__}: " in log.read_text(encoding="utf-8")
    log.unlink()

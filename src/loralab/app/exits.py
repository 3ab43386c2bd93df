"""How a program of ours ends badly: in words, with an exit code that says whose turn it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from loralab.app.logs import log_file, report_crash
from loralab.errors import Problem, UserError

CRASH, USER_ERROR, INTERRUPTED = 1, 2, 130
MOST_SHOWN = 20  # problems; the rest is counted


@contextmanager
def exit_codes() -> Iterator[None]:
    """End the program with 2 on a user's mistake and with 1 on a crash; both are told."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except UserError as error:
        refuse(error.problems)
    except Exception as error:
        report_crash(error)
        sys.exit(CRASH)


def refuse(problems: tuple[Problem, ...]) -> NoReturn:
    """Print what the user can mend, and end."""
    tell(problems)
    sys.exit(USER_ERROR)


def tell(problems: tuple[Problem, ...]) -> None:
    """Print one sentence a problem."""
    count = len(problems)
    heading = "Nothing was started" if log_file() is None else "The run stopped"
    print(f"{heading}: " + ("one problem" if count == 1 else f"{count} problems"))
    for problem in problems[:MOST_SHOWN]:
        print(f"  - {problem}")
    if count > MOST_SHOWN:
        print(f"  and {count - MOST_SHOWN} more")

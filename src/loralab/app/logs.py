"""The run's log file, quiet libraries, and what becomes of an unexpected error."""

from __future__ import annotations

import logging
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

from loralab.errors import is_out_of_memory

LOG_FILE = "train.log"
_log = logging.getLogger("loralab")
_current: list[Path] = []


def quiet_libraries() -> None:
    """Leave the screen to us: libraries speak from warnings on, and into the log."""
    for name in ("lightning.pytorch", "lightning.fabric"):  # importing them resets the parent
        logging.getLogger(f"{name}.utilities.rank_zero").setLevel(logging.WARNING)
    connector = "lightning.pytorch.trainer.connectors.checkpoint_connector"
    logging.getLogger(connector).setLevel(logging.WARNING)  # a line for every save
    for name in ("bitsandbytes", "xformers"):  # they complain about kernels that nobody asked for
        logging.getLogger(name).setLevel(logging.ERROR)
    # Lightning 2.6 calls a torch function that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*")
    # Data loading is chosen by the user; on small sets workers cost more than they give.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Our figures are counted over epochs, so a short epoch hides none.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than.*")
    # A run without held-out images is a choice too.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero.*")
    # The CSV logger shares the run folder with everything else of the run.
    warnings.filterwarnings("ignore", message="Experiment logs directory .* is not empty.*")


def open_log(folder: Path) -> None:
    """Send log records and warnings to `train.log` of this run, and close that of the last."""
    close_log()
    root = logging.getLogger()
    logging.raiseExceptions = False  # a full disk is told once, by what cannot be written
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / LOG_FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.is_run_log = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    _log.setLevel(logging.INFO)
    _current[:] = [folder / LOG_FILE]


def close_log() -> None:
    """Stop writing to a run's log."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if getattr(h, "is_run_log", False)]:
        root.removeHandler(handler)
        handler.close()
    _current.clear()


def log_file() -> Path | None:
    """Return the log of the run under way, or None when none has begun."""
    return _current[0] if _current else None


def report_crash(error: BaseException) -> None:
    """Keep the traceback in the run's log, without one in a file of its own, and say where."""
    text = "".join(traceback.format_exception(error))
    reason = str(error).splitlines()[0] if str(error) else ""
    crash = f"crashed: {type(error).__name__}: {reason}"
    if _current:
        _log.error("the run crashed\n%s", text)
        ending = f"in {_current[0]}; checkpoints are whole, resume=auto continues."
        print(f"The run {crash}\nThe traceback is {ending}", file=sys.stderr)
        return
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", prefix="loralab-", suffix=".log", delete=False
    ) as file:
        file.write(text)
    if is_out_of_memory(error):
        crash = f"ran out of memory ({reason.rstrip('.')}): free some, or ask for less at a time."
    print(f"loralab {crash}\nThe traceback is in {file.name}.", file=sys.stderr)

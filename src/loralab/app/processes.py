"""One run in several processes: for each further device Lightning starts the command once more.

The first process chooses the run folder and hands it over; only it prints and writes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from loralab.app.folders import RunFolder

_VARIABLE = "LORALAB_RUN_FOLDER"


def is_main_process() -> bool:
    """Tell whether this process is the one the user started."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def hand_over(folder: RunFolder) -> None:
    """Leave the run folder to the processes that this one is going to start."""
    facts = {
        "path": str(folder.path.absolute()),
        "checkpoint": str(folder.checkpoint.absolute()) if folder.checkpoint else None,
        "continued": folder.continued,
    }
    os.environ[_VARIABLE] = json.dumps(facts)


def handed_over() -> RunFolder | None:
    """Return the folder that the first process chose; None in the first process."""
    if is_main_process() or _VARIABLE not in os.environ:
        return None
    facts = json.loads(os.environ[_VARIABLE])
    checkpoint = Path(facts["checkpoint"]) if facts["checkpoint"] else None
    return RunFolder(Path(facts["path"]), checkpoint, continued=facts["continued"])

"""A process that has imported everything and forks a fresh `python train.py` on request.

Starting the interpreter and the libraries takes six seconds, a fork takes none. Nothing is run
before the fork, so the child is what a new process would be. `light` imports hydra alone.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
MODULES = {
    "light": ("loralab.app.entry",),
    "heavy": (
        "loralab.app.entry",
        "loralab.app.lifecycle",
        "loralab.app.run",
        "loralab.app.report",
        "loralab.models.components",
        "torch._dynamo",
        "torch.utils.tensorboard",
        "encodings.utf_8_sig",  # loaded when first needed; the interpreter may be closed to others
        "PIL.PngImagePlugin",
    ),
}
TORCH_IMPORTED = 100  # added to the exit code when torch was imported, on request


def main() -> None:
    for module in MODULES[sys.argv[1]]:
        importlib.import_module(module)
    gc.freeze()  # a collection in the child would copy every page of the libraries
    for line in sys.stdin:
        request = json.loads(line)
        if request is None:  # an end of file may not come: workers of tests inherit the pipe
            return
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                break
        print(json.dumps(answer), flush=True)
    else:
        return
    become(request)


def become(request: dict[str, Any]) -> None:
    """Turn the forked child into `python train.py ARGUMENTS` and end with its exit code."""
    os.setpgid(0, 0)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(target, stream)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    if request["obeys_modes"]:
        obey_file_modes()
    sys.argv = [str(TRAIN), *request["arguments"]]
    try:
        runpy.run_path(str(TRAIN), run_name="__main__")
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    if request["tell_torch"] and "torch" in sys.modules:
        code += TORCH_IMPORTED
    # An interpreter's end, without freeing every object one by one.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def obey_file_modes() -> None:
    """Give up root's right to pass over file modes; any other user has to obey them anyway.

    capget(2) and capset(2), version 3: a header, then (effective, permitted, inheritable) twice.
    """
    passes_over = (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0, os.strerror(ctypes.get_errno())
    for place in (0, 1):
        data[place] &= ~passes_over
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())


if __name__ == "__main__":
    main()

"""The console script `loralab`: its commands, and how it ends.

A command's file imports nothing heavy at its top, so that `loralab --help` answers at once.
"""

from __future__ import annotations

import typer

from loralab.app.exits import exit_codes
from loralab.app.logs import quiet_libraries
from loralab.cli import cache, settings
from loralab.cli.check import check
from loralab.cli.compare import compare
from loralab.cli.convert import convert
from loralab.cli.describe import describe
from loralab.cli.evaluate_demo import evaluate_demo
from loralab.cli.export import export
from loralab.cli.extract import extract
from loralab.cli.inspect import inspect
from loralab.cli.lr_find import lr_find
from loralab.cli.merge import merge
from loralab.cli.queue import queue
from loralab.cli.replay import replay
from loralab.cli.resize import resize
from loralab.cli.sample import sample

app = typer.Typer(
    help="Tools around LoRA training. Training itself is `python train.py`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",  # paragraphs of docstrings flow
    pretty_exceptions_enable=False,  # ours say what went wrong
)
app.callback()(quiet_libraries)  # before any command imports them
app.command("evaluate-demo")(evaluate_demo)
app.command("lr-find")(lr_find)
TRAINING = (check, compare, describe, queue, replay)
FILES = (export, sample, inspect, convert, merge, extract, resize)
for command in (*TRAINING, *FILES):
    app.command()(command)
app.add_typer(cache.app, name="cache")
app.add_typer(settings.app, name="settings")


def main() -> None:
    """Run `loralab`; exit code 0 is success, 2 a user's mistake, 1 a crash."""
    with exit_codes():
        app(prog_name="loralab")

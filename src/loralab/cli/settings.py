"""`loralab settings load` and `save`: settings files of other programs, and in their words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Read settings of other programs, or write a run's.", no_args_is_help=True)

FILE_HELP = (
    "JSON of LoRA_Easy_Training_Scripts or kohya_ss, TOML or command line of sd-scripts, or an "
    "adapter file with their metadata."
)
SKIP_HELP = "Settings to leave out, with commas between."
OUT_HELP = "Write the experiment there, for example conf/experiment/NAME.yaml."
DIR_HELP = "A folder of options of your own."


@app.command()
def load(
    file: Annotated[Path, typer.Argument(help=FILE_HELP)],
    skip: Annotated[str, typer.Option(help=SKIP_HELP)] = "",
    out: Annotated[Path | None, typer.Option(help=OUT_HELP)] = None,
) -> None:
    """Make an experiment of a settings file, and tell what became of each setting."""
    from loralab.app.settings.experiment import load_settings, write_experiment
    from loralab.app.settings.report import show_report

    experiment = load_settings(file, skip=[name for name in skip.split(",") if name])
    show_report(experiment)
    if out is None:
        print(f"\n{experiment.text}")
        return
    write_experiment(experiment, out)
    print(f"Wrote {out}. To see its plan: python train.py experiment={out.stem} check_only=true")
    print("compat=sd_scripts beside it brings back its rules where ours differ.")


@app.command()
def save(
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="As after `train.py`.")] = None,
    config_dir: Annotated[Path | None, typer.Option(help=DIR_HELP)] = None,
) -> None:
    """Write the 65 settings of a training as JSON, without training."""
    from loralab.app.settings.saving import save_settings

    count = save_settings(out, overrides or [], config_dir=config_dir)
    print(f"Wrote {count} settings to {out}.")

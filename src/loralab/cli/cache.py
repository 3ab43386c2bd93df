"""`loralab cache info` and `loralab cache clean`: what a latent cache holds, and making room."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look into a latent cache, or make room in it.", no_args_is_help=True)

FolderArgument = Annotated[Path, typer.Argument(help="What data.latent_cache.directory names.")]
DEFAULT_FOLDER = Path("outputs/latent-cache")
DAYS_HELP = "Also remove what was not used for so many days."
SIZE_HELP = "Also remove what was used longest ago, down to so many GB."


@app.command()
def info(folder: FolderArgument = DEFAULT_FOLDER) -> None:
    """Print what a latent cache holds."""
    from loralab.app.cache_folder import show_cache

    show_cache(folder)


@app.command()
def clean(
    folder: FolderArgument = DEFAULT_FOLDER,
    days: Annotated[float | None, typer.Option(min=0, help=DAYS_HELP)] = None,
    size: Annotated[float | None, typer.Option(min=0, help=SIZE_HELP)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all latents.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print.")] = False,
) -> None:
    """Remove damaged and unfinished files and those of other versions; print what that frees.

    Only files that a latent cache has written are touched, and links are not followed.
    """
    from loralab.app.cache_folder import clean_cache

    clean_cache(folder, days=days, size_gb=size, everything=everything, dry_run=dry_run)

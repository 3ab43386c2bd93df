"""`loralab describe GROUP[.FIELD]`: what an option is."""

from __future__ import annotations

from typing import Annotated

import typer


def describe(
    name: Annotated[str, typer.Argument(help="A group like adapter, or an option in it.")],
) -> None:
    """Tell what options take, their default, range and meaning, and what sd-scripts calls them."""
    from loralab.app.describe import show_option

    show_option(name)

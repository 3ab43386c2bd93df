"""`loralab inspect FILE`: what an adapter file holds."""

from __future__ import annotations

from loralab.cli.options import AdapterArgument, JsonOption


def inspect(file: AdapterArgument, as_json: JsonOption = False) -> None:
    """Print the modules of an adapter file, their ranks and norms, and its metadata."""
    from loralab.app import tool_output, tools

    tool_output.show_file(tools.inspect(file), as_json=as_json)

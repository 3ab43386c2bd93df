"""`loralab convert IN OUT --to LAYOUT`: another naming, container or precision."""

from __future__ import annotations

from loralab.cli.options import (
    AdapterArgument,
    JsonOption,
    OutArgument,
    OverwriteOption,
    PrecisionOption,
    ToOption,
)


def convert(
    file: AdapterArgument,
    out: OutArgument,
    to: ToOption,
    precision: PrecisionOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write an adapter file in another layout; alpha and metadata are kept."""
    from loralab.app import tool_output, tools
    from loralab.app.target import Target

    target = Target.of(out, to=to, precision=precision, overwrite=overwrite)
    count = tools.convert(file, target)
    tool_output.show_outcome(f"{out}: {count} modules.", as_json=as_json, modules=count)

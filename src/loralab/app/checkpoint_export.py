"""An adapter file and its card from a checkpoint, with or without the training images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from loralab.adapters.export import verify_file, write_adapter
from loralab.adapters.state import load_adapter_state
from loralab.app.adapters import inject_adapters, part_plans
from loralab.app.export import DTYPES
from loralab.app.folders import read_state
from loralab.app.metadata import Facts, file_metadata
from loralab.app.model_card import card_paths, write_card
from loralab.app.models import model_place
from loralab.app.objective import build_schedule
from loralab.app.resume import checkpoint_problem
from loralab.app.stored_run import newest_checkpoint, stored_config
from loralab.app.target import Target
from loralab.data.account import OrderReceipt
from loralab.errors import Problem, UserError
from loralab.models.registry import family_spec, load_family


def export_checkpoint(source: Path, target: Target) -> tuple[Path, int]:
    """Write the adapter of a checkpoint and read the file back.

    Args:
        source: A checkpoint in its run folder, or the folder, which means the newest one.
        target: The file to write; without a precision that of the run.

    Returns:
        The checkpoint and its number of optimizer steps.

    Raises:
        UserError: The checkpoint, its run's configuration or the base is missing or damaged, the
            card's place is taken, or the file does not hold the adapter.
    """
    stem = target.path.with_suffix("")
    if taken := [p for card in card_paths(stem) for p in target.taken_problems(card)]:
        raise UserError(*taken)
    checkpoint = newest_checkpoint(source)
    folder = checkpoint.resolve().parent.parent
    config = stored_config(folder)
    if checkpoint_problem(checkpoint):
        text = f"{checkpoint} is damaged or not a checkpoint of loralab; give another one."
        raise UserError(Problem("RUN", text))
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    spec = family_spec(config.model.family.name)
    plans = part_plans(config, spec)
    family = load_family(spec.name, model_place(config))
    inject_adapters(config, plans, family)
    adapted = {name: family.parts[name] for name in plans}
    weights = content.get("export_weights", content["state_dict"])  # an average, if one was asked
    for name, part in adapted.items():
        load_adapter_state(part, _own(weights, name))
    facts = Facts(
        config, None, [OrderReceipt(**r) for r in content["account"]["receipts"]], folder,
        build_schedule(config, family.schedule_config).prediction_type, target.path.stem,
        content["global_step"],
    )  # fmt: skip
    write_adapter(
        target.path,
        adapted,
        layout=target.layout,
        dtype=target.dtype or DTYPES[config.export.precision],
        metadata=file_metadata(facts),
        prefixes=spec.export_prefix,
    )
    verify_file(target.path, adapted)
    state = read_state(folder)
    figures = state["metrics"] if state.get("steps") == facts.step else {}
    write_card(stem, [target.path], facts, plans, figures)
    return checkpoint, content["global_step"]


def _own(state: dict[str, Any], part: str) -> dict[str, Any]:
    """Return the tensors of one part by their names in it."""
    prefix = f"{part}."
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}

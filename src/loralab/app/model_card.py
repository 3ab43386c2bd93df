"""The model card beside every adapter file, for programs (JSON) and for people (Markdown)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any

from loralab.app.adapters import PartPlan
from loralab.app.metadata import Facts, session_id
from loralab.config.parse import to_plain
from loralab.files import write_text


def write_card(
    path: Path,
    files: Sequence[Path],
    facts: Facts,
    parts: Mapping[str, PartPlan],
    figures: Mapping[str, float],
) -> None:
    """Write ``NAME.json`` and ``NAME.md``.

    Args:
        path: The name of the files, without any suffix.
        files: The adapter files that the card is about.
        facts: The run.
        parts: Its layers.
        figures: Its latest figures, such as ``val/loss``.
    """
    card = _card(files, facts, parts, figures)
    data, text = card_paths(path)
    write_text(data, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    write_text(text, _markdown(card))


def card_paths(path: Path) -> tuple[Path, Path]:
    """Return the card's two files, given the name of the adapter's without any suffix."""
    return Path(f"{path}.json"), Path(f"{path}.md")


def written_by(path: Path) -> str | None:
    """Return the session that a card names; None without a card."""
    try:
        return str(json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))["session"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _card(
    files: Sequence[Path],
    facts: Facts,
    parts: Mapping[str, PartPlan],
    figures: Mapping[str, float],
) -> dict[str, Any]:
    config, counts = facts.config, facts.counts
    return {
        "title": facts.title,
        "session": session_id(facts.folder),
        "comment": config.export.comment,
        "family": facts.family,
        "base": config.model.path,
        "prediction_type": facts.prediction_type,
        "steps": facts.step,
        "epochs": facts.epoch,
        "adapter": {name: plan.describe() for name, plan in parts.items()},
        "images": counts.get("images"),
        "held_out": counts.get("held_out"),
        "data_digest": facts.data_digest,
        "figures": dict(figures),
        "files": {file.name: _sha256(file) for file in files},
        "config": to_plain(config),
    }


def _markdown(card: Mapping[str, Any]) -> str:
    rows = [("base", f"{card['base']} ({card['family']}, {card['prediction_type']})")]
    rows += [(name, text) for name, text in card["adapter"].items()]
    epochs = "" if card["epochs"] is None else f", {card['epochs']} epochs"
    rows.append(("trained", f"{card['steps']} steps{epochs}"))
    if card["images"] is not None:
        rows.append(("images", f"{card['images']}, {card['held_out']} held out"))
    rows += [(name, f"{value:.4f}") for name, value in sorted(card["figures"].items())]
    lines = [f"# {card['title']}", ""]
    lines += [card["comment"], ""] if card["comment"] else []
    lines += ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows), ""]
    lines += ["| file | SHA-256 |", "|---|---|"]
    lines += [f"| {name} | `{digest}` |" for name, digest in card["files"].items()]
    return "\n".join(lines) + "\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()

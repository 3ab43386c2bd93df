"""The model card beside every adapter file, for programs (JSON) and for people (Markdown)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loralab.app.folders import write_text
from loralab.app.metadata import Facts, session_id
from loralab.config.parse import to_plain

if TYPE_CHECKING:
    from loralab.app.preflight import Survey


def write_card(
    path: Path,
    files: Sequence[Path],
    facts: Facts,
    survey: Survey,
    figures: Mapping[str, float],
) -> None:
    """Write ``NAME.json`` and ``NAME.md``.

    Args:
        path: The name of the files, without any suffix.
        files: The adapter files that the card is about.
        facts: The run.
        survey: Its images and layers.
        figures: Its latest figures, such as ``val/loss``.
    """
    card = _card(files, facts, survey, figures)
    write_text(Path(f"{path}.json"), json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    write_text(Path(f"{path}.md"), _markdown(card))


def written_by(path: Path) -> str | None:
    """Return the session that a card names; None without a card."""
    try:
        return str(json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))["session"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _card(
    files: Sequence[Path], facts: Facts, survey: Survey, figures: Mapping[str, float]
) -> dict[str, Any]:
    config = facts.config
    captions = {i.record.path: i.record.captions for i in survey.items if not i.source.is_prior}
    return {
        "title": facts.title,
        "session": session_id(facts.folder),
        "comment": config.export.comment,
        "family": facts.family,
        "base": config.model.path,
        "prediction_type": facts.prediction_type,
        "steps": facts.step,
        "epochs": facts.epoch,
        "adapter": {name: plan.describe() for name, plan in survey.parts.items()},
        "images": len(captions),
        "held_out": len(survey.validation_items),
        "data_digest": survey.data_digest,
        "figures": dict(figures),
        "files": {file.name: _sha256(file) for file in files},
        "config": to_plain(config),
    }


def _markdown(card: Mapping[str, Any]) -> str:
    rows = [("base", f"{card['base']} ({card['family']}, {card['prediction_type']})")]
    rows += [(name, text) for name, text in card["adapter"].items()]
    rows += [
        ("trained", f"{card['steps']} steps, {card['epochs']} epochs"),
        ("images", f"{card['images']}, {card['held_out']} held out"),
    ]
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

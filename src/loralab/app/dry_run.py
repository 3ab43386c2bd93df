"""A run short of training: everything is checked, shown and, where asked, written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loralab.app.captions import tag_counts, training_sources
from loralab.app.composition import compose_config
from loralab.app.folders import CONFIG_FILE, choose_folder
from loralab.app.preflight import Survey, preflight
from loralab.app.report import show_plan
from loralab.app.schedule import CHART_FILE, draw_schedule
from loralab.app.settings.saving import SETTINGS_FILE, settings_json
from loralab.config.parse import to_yaml
from loralab.config.records import RunConfig
from loralab.data.tags import tag_occurrence
from loralab.errors import ConfigError, Problem
from loralab.files import write_text

TAGS_FILE = "tags.txt"
MOST_TAGS = 20  # shown; the file has them all


def check_run(
    overrides: Sequence[str], *, out: Path | None = None, config_dir: Path | None = None
) -> None:
    """Check a training and show what it would be.

    Args:
        overrides: What would follow `train.py`.
        out: Folder for the configuration, the settings, the tags and the curve.
        config_dir: A user's own folder of options.

    Raises:
        UserError: Every problem that the training would be refused with.
    """
    if out is not None and out.exists():
        raise ConfigError(Problem("--out", f"--out is {out}, which is there already; choose "
                                  "another folder."))  # fmt: skip
    config = compose_config(overrides, config_dir=config_dir)
    folder = choose_folder(config)
    survey = preflight(config, folder)
    show_plan(config, survey, folder)
    show_dry_run(config, survey)
    if out is not None:
        write_text(out / CONFIG_FILE, to_yaml(config))
        write_text(out / SETTINGS_FILE, settings_json(config))
        write_text(out / TAGS_FILE, _tags(config, survey))
        draw_schedule(config, survey, out)
        print(f"Wrote {CONFIG_FILE}, {SETTINGS_FILE}, {TAGS_FILE} and {CHART_FILE} to {out}.")


def show_dry_run(config: RunConfig, survey: Survey) -> None:
    """Print the tags, and that nothing is trained."""
    rows = [line.split("\t") for line in _tags(config, survey).splitlines()]
    shown = ", ".join(f"{tag} {count}" for count, tag in rows[:MOST_TAGS])
    more = f" and {len(rows) - MOST_TAGS} more" if len(rows) > MOST_TAGS else ""
    print(f"{len(rows)} tags and the images they are on: {shown}{more}")
    print("Everything is in order; nothing was trained.")


def _tags(config: RunConfig, survey: Survey) -> str:
    counts = tag_counts(training_sources(survey.items))
    return tag_occurrence(counts, config.data.captions.tag_occurrence_order.name)

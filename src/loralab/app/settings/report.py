"""What a person reads of a settings file: taken over, left out and why, mistakes in it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from loralab.app.settings.experiment import Experiment
from loralab.app.settings.original import Verdict


def show_report(experiment: Experiment) -> None:
    """Print what became of every setting."""
    original = experiment.original
    spelled = {name: word for word, name in original.words.items()}  # as in the file
    print(f"{original.path}: {original.format.value}, {len(original.given)} settings")
    console = Console(width=110)
    if experiment.mapped:
        table = Table("setting", "here", "value", title="taken over", title_justify="left")
        for key, (value, name) in experiment.mapped.items():
            table.add_row(spelled.get(name, name), key, str(value))
        console.print(table)
    for verdict in Verdict:
        rows = [row for row in experiment.findings if row.verdict is verdict]
        if rows and verdict is Verdict.idle:
            print(f"{verdict.value}: {', '.join(row.name for row in rows)}")
        elif rows:
            title = "taken over in other words" if verdict is Verdict.mapped else verdict.value
            print(f"{title}:")
            for row in rows:
                print(f"  - {spelled.get(row.name, row.name)}: {row.text}")
    print(", ".join(f"{count} {word}" for word, count in counts(experiment).items()))


def counts(experiment: Experiment) -> dict[str, Any]:
    """Return how many settings were taken over, had no equivalent and so on."""
    found = Counter(row.verdict for row in experiment.findings)
    taken = len({name for _, name in experiment.mapped.values()})
    verdicts = [verdict for verdict in Verdict if verdict is not Verdict.mapped]
    return {Verdict.mapped.value: taken} | {verdict.value: found[verdict] for verdict in verdicts}

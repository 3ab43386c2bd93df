"""A settings file as it was read, and what there is to say about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any


class Verdict(Enum):
    """What became of a setting of the original."""

    mapped = "mapped"
    no_equivalent = "no equivalent"
    mistake = "a mistake in the original"
    refused = "refused here"
    skipped = "skipped"
    idle = "empty, off or only descriptive"


@dataclass(frozen=True)
class Finding:
    """One setting and what became of it."""

    verdict: Verdict
    name: str
    text: str


class Format(Enum):
    """The files that are understood."""

    launcher = "JSON of LoRA_Easy_Training_Scripts"
    gui = "JSON of kohya_ss"
    training_toml = "training TOML of sd-scripts"
    dataset_toml = "dataset TOML of sd-scripts"
    command = "command line of sd-scripts"
    metadata = "metadata of an adapter file"


@dataclass
class Original:
    """Settings by the names of `vocabulary`.

    Attributes:
        path: The file.
        format: What it is.
        values: Setting -> value, as the file gives it or the program's default.
        given: The settings that the file itself gives.
        words: Name in the file -> the setting it is read as, of every name there is.
        datasets: Of a dataset TOML: its general section, and its datasets.
        findings: Mistakes and settings left out so far.
    """

    path: Path
    format: Format
    values: dict[str, Any] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)
    words: dict[str, str] = field(default_factory=dict)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def note(self, verdict: Verdict, name: str, text: str) -> None:
        """Keep a finding."""
        self.findings.append(Finding(verdict, name, text))

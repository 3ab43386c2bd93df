"""What settings become here, while they are translated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from loralab.app.settings.original import Finding, Format, Original, Verdict
from loralab.app.settings.vocabulary import SD_SCRIPTS_DEFAULTS

OFF: tuple[Any, ...] = (None, False, 0, 0.0, "", [])


def as_passed_on(values: dict[str, Any], format_: Format) -> dict[str, Any]:
    """Return the settings as sd-scripts gets them: the launcher passes nothing empty on."""
    if format_ is not Format.launcher:
        return dict(values)
    return {
        name: SD_SCRIPTS_DEFAULTS.get(name) if value in (None, "") else value
        for name, value in values.items()
    }


@dataclass
class Plan:
    """Choices and values of an experiment, and the setting that each came from.

    Attributes:
        settings: What is translated; settings are taken out by `take`.
        choices: Group -> option.
        values: Our key -> value.
        origin: Our key -> the setting it came from.
        findings: What could not be said here, and what had to be said otherwise.
    """

    settings: dict[str, Any]
    format: Format
    given: set[str]
    choices: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, original: Original) -> Plan:
        """Begin with the settings of a file."""
        return cls(as_passed_on(original.values, original.format), original.format,
                   set(original.given))  # fmt: skip

    def take(self, name: str, default: Any = None) -> Any:
        """Return a setting; the default where it is not given."""
        self.taken.add(name)
        value = self.settings.get(name)
        return default if value is None else value

    def has(self, *names: str) -> bool:
        """Say whether any of these settings is known."""
        return any(name in self.settings for name in names)

    def put(self, key: str, value: Any, name: str) -> None:
        """Give a key of ours a value, which a setting asked for."""
        self.values[key] = value
        self.origin[key] = name

    def choose(self, group: str, option: str, name: str) -> None:
        """Choose an option of a group, which a setting asked for."""
        self.choices[group] = option
        self.origin[group] = name

    def note(self, verdict: Verdict, name: str, text: str) -> None:
        """Keep a finding; defaults of a program are nobody's mistake and are passed over."""
        if name in self.given:
            self.findings.append(Finding(verdict, name, text))

    def left(self) -> Iterator[tuple[str, Any]]:
        """Yield the settings that nothing was made of and that are not off."""
        for name, value in self.settings.items():
            if name not in self.taken and value not in OFF:
                yield name, value

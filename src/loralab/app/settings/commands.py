"""A command line of sd-scripts, by itself or in a script of a shell or of Windows -> its options.

Variables that the script sets are filled in. What runs before the training, and what the launching
program takes, is told apart from the training's own options.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loralab.app.settings.original import Finding, Verdict
from loralab.app.settings.vocabulary import kinds, option_names
from loralab.errors import ConfigError, Problem

TRAININGS = ("train_network.py", "sdxl_train_network.py")
_LAUNCHER = ("num_cpu_threads_per_process", "num_processes", "num_machines", "dynamo_backend",
             "multi_gpu", "gpu_ids", "main_process_port")  # fmt: skip
_COMMENT = re.compile(r"(?:^|\s)#[^\"']*$")
_REMARK = re.compile(r"^\s*(?:#|::|@?rem\b)", re.IGNORECASE)
_ASSIGNMENT = re.compile(
    r"""^\s*(?:export\s+|set\s+|\$)?"?([A-Za-z_]\w*)\s*=\s*("[^"]*"|'[^']*'|[^\s";]*)"?\s*;?\s*$""",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)|%(\w+)%")


def command_line(text: str, path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Return the options of the training in a text, a flag without a value being True.

    Raises:
        ConfigError: Quotes do not close; there is no option, more than one training, or one of
            another kind of model.
    """
    words = _training(text, path)
    found: dict[str, Any] = {}
    findings: list[Finding] = []
    script = next((place for place, word in enumerate(words) if word.endswith(".py")), -1)
    for word in words[: max(0, script)]:
        if word.startswith("--"):
            findings.append(_for_the_launcher(word))
    if script >= 0 and "sdxl" in Path(words[script].replace("\\", "/")).name:
        found["sdxl"] = True
    for name, values in _options(words[script + 1 :]):
        if script < 0 and name in _LAUNCHER:
            findings.append(_for_the_launcher(f"--{name}"))
        else:
            _take(found, findings, name, values)
    if not found and not findings:
        raise _refusal(path, "has no options like --network_dim=16.")
    return found, findings


def _training(text: str, path: Path) -> list[str]:
    """Return the words of the one command that trains; of all lines where none names a script."""
    is_windows = path.suffix.lower() in (".bat", ".ps1") or re.search(r"\b[A-Za-z]:\\", text)
    joined = re.sub(r"[\\^`][ \t]*\n", " ", text)
    lines = [_COMMENT.sub("", line) for line in joined.splitlines() if not _REMARK.match(line)]
    known: dict[str, str] = {}
    with_options: list[str] = []
    for line in lines:
        filled = _VARIABLE.sub(lambda match: _value(match, known), line)
        if set_here := _ASSIGNMENT.match(filled):
            known[set_here[1].lower()] = set_here[2].strip("\"'")
        elif "--" in filled:
            with_options.append(filled)
    if not any(".py" in line for line in with_options):
        with_options = [" ".join(with_options)]
    commands = [words for line in with_options for words in _commands(line, path, bool(is_windows))]
    scripts = [Path(word.replace("\\", "/")).name for words in commands for word in words
               if word.endswith(".py")]  # fmt: skip
    others = [name for name in scripts if name not in TRAININGS]
    if others:
        raise _refusal(path, f"runs {others[0]}; only {' and '.join(TRAININGS)} train a LoRA of "
                       "Stable Diffusion.")  # fmt: skip
    if len(scripts) > 1:
        raise _refusal(path, f"holds {len(scripts)} trainings; put each into a file of its own.")
    chosen = [words for words in commands if not scripts or any(w.endswith(".py") for w in words)]
    return chosen[0] if chosen else []


def _value(match: re.Match[str], known: dict[str, str]) -> str:
    name = next(group for group in match.groups() if group)
    return known.get(name.lower(), match[0])


def _commands(line: str, path: Path, is_windows: bool) -> Iterator[list[str]]:
    """Split a line at `&&`, `;` and `|`, and each command into words."""
    words = shlex.shlex(line, posix=True, punctuation_chars="&;|")
    words.whitespace_split, words.commenters = True, ""
    if is_windows:
        words.escape = ""  # a backslash parts folders there
    command: list[str] = []
    try:
        for word in words:
            if set(word) <= set("&;|"):
                yield command
                command = []
            else:
                command.append(word)
    except ValueError as error:
        raise _refusal(path, f"is not a command line: {error}.") from error
    yield command


def _options(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield every option with the words that follow it; those before any under an empty name."""
    name: str = ""
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            if name or values:
                yield name, values
            name, equals, value = word[2:].partition("=")
            values = [value] if equals else []
        else:
            values.append(word)
    if name or values:
        yield name, values


def _take(found: dict[str, Any], findings: list[Finding], name: str, values: list[str]) -> None:
    """Keep an option; what no parser of options would take is a mistake."""

    def mistake(about: str, text: str) -> None:
        findings.append(Finding(Verdict.mistake, about, text))

    if unfilled := next((word for word in values if _VARIABLE.search(word)), None):
        mistake(name or unfilled, f"is {unfilled}, and the file does not set this variable; write "
                "its value there. Left out.")  # fmt: skip
        return
    if kinds().get(option_names().get(name, name)) == "list":
        value: Any = values
    else:
        value, stray = (values[0] if values else True), values[1:] if name else values
        for word in stray:
            after = (
                f"stands after --{name}, which takes one value at most" if name else "is no option"
            )
            mistake(word, f"{after}; sd-scripts refuses it.")
    if not name:
        return
    if name in found and found[name] != value:
        mistake(name, f"is given twice, {found[name]} and {value}; the last one counts.")
    found[name] = value


def _for_the_launcher(word: str) -> Finding:
    return Finding(Verdict.no_equivalent, word[2:].partition("=")[0],
                   "is for the launching program alone.")  # fmt: skip


def _refusal(path: Path, what: str) -> ConfigError:
    return ConfigError(Problem(str(path), f"{path} {what}"))

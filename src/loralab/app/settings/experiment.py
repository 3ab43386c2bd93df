"""Settings of another program -> a Hydra experiment that composes and keeps our rules."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from loralab.app.composition import neutral_config
from loralab.app.recipes import check_arguments
from loralab.app.settings.backward import settings_of
from loralab.app.settings.beyond import translate_beyond
from loralab.app.settings.datasets import merge_datasets, put_sources
from loralab.app.settings.forward import translate
from loralab.app.settings.original import Finding, Original, Verdict
from loralab.app.settings.plan import Plan
from loralab.app.settings.reading import read_settings
from loralab.config.parse import parse_config, without_references
from loralab.config.records import RunConfig
from loralab.config.settings_table import settings
from loralab.errors import ConfigError, Problem
from loralab.files import write_text


@dataclass(frozen=True)
class Experiment:
    """What became of a settings file.

    Attributes:
        original: The file.
        text: The experiment, as YAML.
        mapped: Our key -> its value and the setting it came from.
        findings: All that could not be taken over as it stood.
    """

    original: Original
    text: str
    mapped: dict[str, tuple[Any, str]]
    findings: list[Finding]


def load_settings(path: Path, *, skip: Collection[str] = ()) -> Experiment:
    """Read a settings file and make an experiment of it.

    Raises:
        ConfigError: The file cannot be read, or no experiment that keeps the rules comes of it.
    """
    original = read_settings(path, skip=skip)
    if original.datasets:
        merge_datasets(original)
    plan = translate(Plan.of(original))
    if original.datasets:
        put_sources(plan, original)
    translate_beyond(plan)
    _drop_unknown_arguments(plan)
    config = _keep_what_parses(plan)
    kept = _kept_settings(plan, original, config)
    if kept:
        plan.values["compat.kept_settings"] = kept
    mapped = {
        key: (plan.choices.get(key, plan.values.get(key)), name)
        for key, name in plan.origin.items()
        if name in plan.given or (original.datasets and name == "datasets")
    }
    findings = original.findings + plan.findings
    findings += _unsaid(original, {name for _, name in mapped.values()}, findings)
    return Experiment(original, _as_yaml(plan, original), mapped, findings)


def _unsaid(original: Original, taken: set[str], findings: list[Finding]) -> list[Finding]:
    """Return a finding for every name in the file that nothing was said of yet."""
    told = taken | {row.name for row in findings}
    return [
        Finding(Verdict.idle, word, "")
        for word, name in original.words.items()
        if not {word, name} & told
    ]


def _drop_unknown_arguments(plan: Plan) -> None:
    """Leave out what the optimizer does not take, with the sentence."""
    if "optimizer_args" not in plan.origin.values():
        return
    recipe = OmegaConf.to_container(_composed(plan).optimizer)
    try:
        check_arguments("optimizer", recipe, given=1)  # type: ignore[arg-type]
    except ConfigError as error:
        for problem in error.problems:  # an extra that is not installed is no matter of the file
            if plan.origin.get(problem.key) == "optimizer_args":
                plan.values.pop(problem.key)
                del plan.origin[problem.key]
                plan.note(Verdict.mistake, "optimizer_args", f"{problem} Left out.")


def write_experiment(experiment: Experiment, out: Path) -> None:
    """Write an experiment; a file that is there already is left alone.

    Raises:
        ConfigError: The file is there, or its folder cannot be written.
    """
    if out.suffix != ".yaml":
        raise ConfigError(Problem("--out", f"--out is {out}; it must end in .yaml."))
    if out.exists():
        raise ConfigError(Problem("--out", f"--out is {out}, which is there already; remove it or "
                                  "choose another name."))  # fmt: skip
    write_text(out, experiment.text)


def _keep_what_parses(plan: Plan) -> RunConfig:
    """Take out what our rules refuse, with the sentence of each, and return the configuration."""
    while True:
        try:
            return parse_config(_composed(plan))
        except ConfigError as error:
            refused = [problem for problem in error.problems if _origin(plan, problem.key)]
            if not refused:
                raise
            for problem in refused:
                key = _origin(plan, problem.key)
                if key is None:
                    continue
                name = plan.origin.pop(key)
                plan.values.pop(key, None)
                plan.choices.pop(key, None)
                plan.findings.append(Finding(Verdict.refused, name, f"{problem} Left out."))


def _origin(plan: Plan, key: str) -> str | None:
    """Return the key that we put and that a problem is about."""
    while key:
        if key in plan.origin and (key in plan.values or key in plan.choices):
            return key
        key = key.rpartition(".")[0] or key.partition("[")[0] * ("[" in key)
    return None


def _composed(plan: Plan) -> DictConfig:
    choices = [f"{group}={option}" for group, option in plan.choices.items()]
    plain = neutral_config([*choices, "model.allow_demo=true"])  # a matter of the run, not ours
    for key, value in plan.values.items():
        OmegaConf.update(plain, key, without_references(value), merge=False)
    return plain


def _kept_settings(plan: Plan, original: Original, config: RunConfig) -> dict[str, Any]:
    """Return the settings that would be saved in other words than they were given in."""
    found = settings_of(config)
    return {
        name: original.values[name]
        for name in settings()
        if name in original.given and found[name] != original.values[name]
    }


def _as_yaml(plan: Plan, original: Original) -> str:
    """Return the text of the experiment's file."""
    tree: dict[str, Any] = {}
    for key, value in plan.values.items():
        *groups, name = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = without_references(value)
    defaults = [{f"override /{group}": option} for group, option in plan.choices.items()]
    head = (
        "# @package _global_\n"
        f"# {original.path.name} ({original.format.value}), by `loralab settings load`.\n"
    )
    content = {"defaults": defaults, **tree} if defaults else tree
    return f"{head}{yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)}"

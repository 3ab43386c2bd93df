"""Every file of `conf/` composes, parses, keeps the rules and binds its recipes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from loralab.app.recipes import check_arguments, recipe_target
from loralab.config.parse import parse_config
from loralab.config.store import conf_dir
from tests.config.conftest import composed

PRESETS = ("experiment", "sweep", "hparams_search", "debug")
OPTIONAL_EXTRAS = ("bitsandbytes", "pytorch_optimizer", "prodigyopt", "prodigyplus", "schedulefree")
ONE_RATE = ("adafactor_relative", "dadapt_adam", "dadapt_lion", "dadapt_sgd", "prodigy")


def yaml_files() -> list[Path]:
    """Return every file that belongs to the project: `local/` is the user's own."""
    files = sorted(path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml"))
    return [file for file in files if file.parts[0] != "local"]


def overrides_for(file: Path) -> list[str]:
    """Return the choice of one file, with a folder for what only the user knows."""
    group, option = file.parent.as_posix(), file.stem
    choice = [] if group == "." else [f"{group}={option}"]
    if group == "experiment":
        preset = []
    elif group == "data" and option in ("demo", "demo_subject"):
        preset = ["~experiment", "model=demo"]  # made for each other: resolution and buckets
    else:
        preset = ["~experiment"]
    return [*preset, *choice]


@functools.cache
def as_composed(*overrides: str) -> dict[Any, Any]:
    """Return the composed configuration as plain data, references left as they are."""
    content = OmegaConf.to_container(composed(*overrides))
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("file", yaml_files(), ids=str)
def test_file_composes_parses_and_binds(file: Path) -> None:
    overrides = overrides_for(file)
    raw = as_composed(*overrides)
    folders = [
        f"{group}.{name}=some-folder"
        for group, name in (("model", "path"), ("data", "image_dir"))
        if raw[group][name] == "???"
    ]
    if file.as_posix() == "model/demo.yaml":
        folders = ["data.image_dir=${demo:train}", "data.buckets={step: 16, min_side: 32}"]
    if file.as_posix() == "objective/stratified.yaml":
        folders.append("data.batch_size=2")
    if file.as_posix() == "validation/default.yaml":
        folders.append("validation.every_n_steps=1")
    if file.as_posix() == "scheduler/plateau.yaml":
        folders += ["validation=default"]
    if file.parts[0] == "optimizer" and file.stem in ONE_RATE:
        folders.append("adapter.text_encoder.lr_scale=1")
    config = parse_config(composed(*overrides, *folders))
    recipes = {"optimizer": config.optimizer, "trainer": config.trainer}
    recipes |= {f"callbacks.{name}": recipe for name, recipe in config.callbacks.items() if recipe}
    for key, recipe in recipes.items():
        if not recipe["_target_"].startswith(OPTIONAL_EXTRAS):
            assert callable(recipe_target(key, recipe))
            check_arguments(key, recipe, given=1 if key == "optimizer" else 0)


def test_a_case_was_made_of_every_file_there_is() -> None:
    files = yaml_files()
    assert len(files) >= 30
    for group in ("model", "data", "adapter", "optimizer", "callbacks", *PRESETS):
        assert any(file.parts[0] == group for file in files), f"no file of {group} was seen"


def test_only_presets_carry_the_global_package_header() -> None:
    carriers = {
        file.parts[0]
        for file in yaml_files()
        if "@package _global_" in (conf_dir() / file).read_text(encoding="utf-8")
    }
    assert carriers == set(PRESETS)


@pytest.mark.parametrize(
    "file",
    [f for f in yaml_files() if f.parts[0] not in (*PRESETS, "hydra", "train.yaml")],
    ids=str,
)
def test_a_group_file_sets_its_own_group_only(file: Path) -> None:
    group = file.parts[0]
    one, other = as_composed("~experiment"), as_composed(*overrides_for(file))
    made_for_the_demo = file.as_posix() in ("data/demo.yaml", "data/demo_subject.yaml")
    together = {"data", "model"} if made_for_the_demo else {group}
    assert {key for key in one if one[key] != other[key]} <= together


@pytest.mark.parametrize("file", yaml_files(), ids=str)
def test_a_file_says_in_its_first_line_what_it_is(file: Path) -> None:
    first, second, *_ = (conf_dir() / file).read_text(encoding="utf-8").splitlines()
    said = second if first == "# @package _global_" else first
    assert said.startswith("# ")
    assert len(said) > 10

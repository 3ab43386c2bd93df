"""One word for one thing: choices of the configuration, tables in the code, files in `conf/`."""

from __future__ import annotations

import inspect

import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from omegaconf import OmegaConf

from loralab.adapters.export import LAYOUTS, TOLERANCES
from loralab.adapters.kinds import KINDS
from loralab.app import build, export
from loralab.config import choices
from loralab.config.rules import TARGET_PRESETS
from loralab.config.store import conf_dir
from loralab.diffusion.schedule import NoiseSchedule
from loralab.diffusion.weighting import WEIGHTINGS
from loralab.models.facts import PREDICTION_TYPES
from loralab.models.registry import LOADERS, SPECS, WEIGHT_DTYPES
from loralab.training.lr_schedules import SHAPES


def words(kind: type[choices.Enum]) -> set[str]:
    """Return the members of a choice; name and value must be the same word."""
    assert {member.name for member in kind} == {member.value for member in kind}
    return {member.name for member in kind}


def files(group: str) -> set[str]:
    return {file.stem for file in (conf_dir() / group).glob("*.yaml")}


def test_every_choice_is_one_word_for_name_and_value() -> None:
    kinds = [
        kind for kind in vars(choices).values()
        if inspect.isclass(kind) and issubclass(kind, choices.Enum) and kind is not choices.Enum
    ]  # fmt: skip
    assert len(kinds) >= 10
    assert all(words(kind) for kind in kinds)


def test_families_are_those_with_a_loader() -> None:
    assert words(choices.Family) == set(LOADERS) == set(SPECS)


def test_prediction_types_are_those_of_models_and_schedules() -> None:
    assert words(choices.PredictionType) == set(PREDICTION_TYPES)
    for word in PREDICTION_TYPES:
        schedule = NoiseSchedule(betas=torch.full((10,), 0.1), prediction_type=word)
        assert schedule.prediction_type == word


def test_weightings_are_those_of_the_table_and_have_a_file() -> None:
    assert words(choices.Weighting) == set(WEIGHTINGS)
    assert files("objective") >= words(choices.Weighting) - {"constant"}


def test_schedules_are_those_of_the_table_and_each_has_its_file() -> None:
    assert words(choices.Schedule) == set(SHAPES) == files("scheduler")
    for name in files("scheduler"):
        assert OmegaConf.load(conf_dir() / "scheduler" / f"{name}.yaml").kind == name


def test_adapter_kinds_are_those_of_the_table_and_each_has_its_file() -> None:
    assert words(choices.AdapterKind) == set(KINDS) == files("adapter")


def test_layouts_are_those_that_can_be_written() -> None:
    assert words(choices.Layout) == set(LAYOUTS)


def test_file_precisions_are_those_that_can_be_verified() -> None:
    assert words(choices.FilePrecision) == {member.name for member in export.DTYPES}
    assert set(export.DTYPES.values()) == set(TOLERANCES)


def test_weight_dtypes_are_those_of_the_loader() -> None:
    assert words(choices.WeightDtype) == {member.name for member in build.DTYPES}
    names = {str(dtype).removeprefix("torch.") for dtype in build.DTYPES.values()}
    assert names == set(WEIGHT_DTYPES)


def test_loggers_are_those_with_a_file_and_a_class() -> None:
    assert words(choices.LoggerKind) == files("logger")
    assert words(choices.LoggerKind) == {"none", "csv", "tensorboard"}
    assert build.CSVLogger is CSVLogger
    assert build.TensorBoardLogger is TensorBoardLogger


def test_compat_has_a_file_for_each_word() -> None:
    assert words(choices.Compat) == files("compat")


def test_target_presets_are_those_of_every_part_of_every_family() -> None:
    for spec in SPECS.values():
        for presets in spec.targets.values():
            assert set(presets) == set(TARGET_PRESETS)

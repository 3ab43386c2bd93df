"""One word for one thing: choices of the configuration, tables in the code, files in `conf/`."""

from __future__ import annotations

import inspect

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from omegaconf import OmegaConf

from loralab.adapters.container import SUFFIXES
from loralab.adapters.export import LAYOUTS, TOLERANCES
from loralab.adapters.kinds import KINDS
from loralab.app import build, export
from loralab.config import choices
from loralab.config.rules import TARGET_PRESETS
from loralab.config.schedule_rules import SCHEDULE_OPTIONS
from loralab.config.store import conf_dir
from loralab.config.validation_rules import NOISE_BANDS
from loralab.data import augment, latent_cache
from loralab.data.buckets import MATCHES
from loralab.data.images import RESIZE_FILTERS
from loralab.diffusion.losses import HUBER_SCHEDULES, LOSSES
from loralab.diffusion.targets import PREDICTION_ERRORS, TARGETS
from loralab.diffusion.timesteps import DENSITIES, SPREADS
from loralab.diffusion.weighting import WEIGHTINGS
from loralab.models.facts import PREDICTION_TYPES
from loralab.models.registry import SPECS, WEIGHT_DTYPES
from loralab.training.lr_schedules import SHAPES
from loralab.training.validation import BANDS


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
    assert words(choices.Family) == set(SPECS)


def test_prediction_types_are_those_of_models_and_schedules() -> None:
    assert words(choices.PredictionType) == set(PREDICTION_TYPES)
    assert set(PREDICTION_TYPES) == set(TARGETS) == set(PREDICTION_ERRORS)


def test_choices_of_the_objective_are_those_of_its_tables() -> None:
    assert words(choices.Loss) == set(LOSSES)
    assert words(choices.HuberSchedule) == set(HUBER_SCHEDULES)
    assert words(choices.TimestepSampling) == set(DENSITIES)
    assert words(choices.TimestepSpread) == set(SPREADS)


def test_weightings_are_those_of_the_table_and_have_a_file() -> None:
    assert words(choices.Weighting) == set(WEIGHTINGS)
    assert files("objective") >= words(choices.Weighting) - {"constant"}


def test_schedules_are_those_of_the_table_and_each_has_its_file() -> None:
    assert words(choices.Schedule) == set(SHAPES) == files("scheduler")
    for name in files("scheduler"):
        assert OmegaConf.load(conf_dir() / "scheduler" / f"{name}.yaml").kind == name


def test_choices_of_images_are_those_of_their_tables() -> None:
    assert words(choices.AugmentationKind) == set(augment.KINDS)
    assert words(choices.BucketMatch) == set(MATCHES)
    assert words(choices.ResizeFilter) == set(RESIZE_FILTERS)
    assert words(choices.FilePrecision) == set(latent_cache.DTYPES)


def test_schedules_read_the_options_that_the_rules_ask_for() -> None:
    assert set(SCHEDULE_OPTIONS) == set(SHAPES)
    for kind, names in SCHEDULE_OPTIONS.items():
        parameters = inspect.signature(SHAPES[kind]).parameters.values()
        own = {item.name for item in parameters if item.kind is inspect.Parameter.KEYWORD_ONLY}
        assert own - {"losses_before"} == set(names) - {"unit"}, kind


def test_bands_of_noise_are_those_that_are_measured() -> None:
    assert NOISE_BANDS == BANDS


def test_adapter_kinds_are_those_of_the_table_and_each_has_its_file() -> None:
    assert words(choices.AdapterKind) == set(KINDS) <= files("adapter")
    kinds = {OmegaConf.load(conf_dir() / "adapter" / f"{n}.yaml").kind for n in files("adapter")}
    assert kinds == set(KINDS)


def test_layouts_are_those_that_can_be_written() -> None:
    assert words(choices.Layout) == set(LAYOUTS)


def test_containers_are_those_that_can_be_written() -> None:
    assert {f".{word}" for word in words(choices.Container)} == set(SUFFIXES)


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

"""Parsing: every problem at once, at every level, from YAML as from Hydra."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest
from omegaconf import OmegaConf

from loralab.config.choices import LoggerKind, Schedule, SourceLayout
from loralab.config.parse import describe_type, parse_config, to_plain, to_yaml, walk_options
from loralab.config.records import RunConfig
from loralab.errors import ConfigError, Problem
from tests.config.conftest import composed, put


def problems(raw: Any) -> dict[str, str]:
    """Return the messages by key."""
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    assert all(isinstance(problem, Problem) for problem in caught.value.problems)
    return {problem.key: problem.message for problem in caught.value.problems}


def test_yaml_survives_a_round_trip(plain: dict[str, Any]) -> None:
    config = parse_config(plain)
    text = to_yaml(config)
    again = parse_config(OmegaConf.to_container(OmegaConf.create(text)))  # type: ignore[arg-type]
    assert again == config
    assert to_yaml(again) == text


def test_plain_yaml_and_a_composed_config_parse_alike(plain: dict[str, Any]) -> None:
    overrides = ("~experiment", "model.path=base", "data.image_dir=images", "run_id=first")
    assert parse_config(composed(*overrides)) == parse_config(plain)


def test_a_text_that_looks_like_a_reference_stays_a_text(plain: dict[str, Any]) -> None:
    text = "${oc.env:HOME} and ${seed}"
    plain["export"]["comment"] = text
    plain["preview"]["prompts"] = [text, r"\${seed}"]
    config = parse_config(plain)
    assert config.export.comment == text
    assert config.preview.prompts == [text, r"\${seed}"]
    assert parse_config(OmegaConf.create(to_yaml(config))) == config  # type: ignore[arg-type]


def test_what_an_option_takes_is_named_for_every_choice() -> None:
    groups = (
        "optimizer",
        "trainer",
        "callbacks",
        "compat.kept_settings",
        "data.sources[].captions",
    )
    for key, item, _ in walk_options(RunConfig):
        assert describe_type(item) != "a group of keys" or key in groups, key


def test_words_become_members_and_references_become_values(plain: dict[str, Any]) -> None:
    config = parse_config(plain)
    assert config.logger.kind is LoggerKind.tensorboard
    assert config.scheduler.kind is Schedule.constant
    assert config.data.resolution == config.model.native_resolution == 512
    assert config.adapter.alpha == config.adapter.rank == 16
    assert not any(isinstance(value, Enum) for value in to_plain(config).values())


def test_every_problem_is_reported_at_once(plain: dict[str, Any]) -> None:
    put(plain, "adapter.rank", "eight")
    put(plain, "data.captions.caption_dropout", 1.5)
    put(plain, "data.captions.captoin_dropout", 0.5)
    put(plain, "model.prediction_type", "vpred")
    put(plain, "seeed", 1)
    del plain["data"]["image_dir"]
    assert problems(plain) == {
        "adapter.rank": "adapter.rank is 'eight'; it must be a whole number.",
        "data.captions.caption_dropout": (
            "data.captions.caption_dropout is 1.5; it must be between 0 and 1."
        ),
        "data.captions.captoin_dropout": (
            "data.captions.captoin_dropout is not an option. "
            "Did you mean data.captions.caption_dropout?"
        ),
        "data.image_dir": (
            "data.image_dir has no value and needs one. Set data.image_dir=FOLDER to your images."
        ),
        "model.prediction_type": (
            "model.prediction_type is 'vpred'; it must be one of epsilon, v_prediction, sample, "
            "flow_prediction or null."
        ),
        "seeed": "seeed is not an option. Did you mean seed?",
    }


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("key", ["adapter.unet.lr", "objective.logit_normal_mean", "ema.decay"])
def test_numbers_that_are_not_finite_are_refused(
    plain: dict[str, Any], key: str, number: float
) -> None:
    put(plain, key, number)
    ((found, text),) = problems(plain).items()
    assert found == key
    assert text.startswith(f"{key} is {number}; it must be ")


GROUPS = sorted({key.rpartition(".")[0] for key, _, _ in walk_options(RunConfig)})


@pytest.mark.parametrize("group", GROUPS)
def test_an_unknown_key_is_refused_at_every_level(plain: dict[str, Any], group: str) -> None:
    key = f"{group}.zzzz".lstrip(".")
    put(plain, key, 1)
    found, key = problems(plain), key.replace("[]", "[0]")
    assert list(found) == [key]
    assert found[key].startswith(f"{key} is not an option. Allowed: ")


def test_unknown_keys_are_tried_on_every_record_there_is() -> None:
    assert len(GROUPS) >= 16
    assert {"", "data.captions", "adapter.text_encoder"} <= set(GROUPS)


RANGES = [
    (key, bound, field.metadata[bound])
    for key, field, _ in walk_options(RunConfig)
    for bound in ("low", "high")
    if field.metadata[bound] is not None
]


@pytest.mark.parametrize(("key", "bound", "limit"), RANGES)
def test_a_value_beyond_its_range_is_refused(
    plain: dict[str, Any], key: str, bound: str, limit: float
) -> None:
    beyond = limit - 1 if bound == "low" else limit + 1
    put(plain, key, beyond)
    found, key = problems(plain), key.replace("[]", "[0]")
    assert list(found) == [key]
    assert f"{key} is {beyond}" in found[key]
    assert f"{limit:g}" in found[key]


def test_ranges_were_found_in_the_records() -> None:
    assert len(RANGES) >= 40


WRONG_TYPES = [
    ("seed", "one", "a whole number"),
    ("seed", 1.5, "a whole number"),
    ("adapter.rank", True, "a whole number"),
    ("adapter.alpha", "half", "a number"),
    ("check_only", "perhaps", "true or false"),
    ("adapter.unet.targets", "attention", "a list of texts, like [a, b]"),
    ("adapter.unet.lr", "fast", "a number or null"),
    ("export.layouts", ["kohya", "comfy"], "a list of kohya, diffusers"),
    (
        "scheduler.kind",
        "cosin",
        "one of constant, constant_with_warmup, linear, cosine, cosine_with_restarts, "
        "cosine_with_min_lr, polynomial, inverse_sqrt, warmup_stable_decay, rex, one_cycle, step, "
        "multistep, exponential, plateau",
    ),
    ("model.weight_dtype", None, "one of fp32, bf16, fp16"),
    ("validation.folder", ["a"], "text or null"),
    ("data.sources", "a", "a list of sources, like [{image_dir: a}, {image_dir: b}]"),
    ("optimizer", "adamw", "a group of keys"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), WRONG_TYPES)
def test_a_wrong_type_is_refused_with_what_is_allowed(
    plain: dict[str, Any], key: str, value: Any, allowed: str
) -> None:
    put(plain, key, value)
    assert problems(plain) == {key: f"{key} is {value!r}; it must be {allowed}."}


SOURCE = {"image_dir": "a"}


def test_sources_stand_in_for_the_missing_folder(plain: dict[str, Any]) -> None:
    put(plain, "data.image_dir", "???")
    put(plain, "data.sources", [SOURCE, SOURCE | {"repeats": 3, "layout": "numbered_folders"}])
    config = parse_config(plain)
    assert config.data.image_dir is None
    assert [source.repeats for source in config.data.sources] == [1, 3]
    assert config.data.sources[1].layout is SourceLayout.numbered_folders
    assert parse_config(OmegaConf.to_container(OmegaConf.create(to_yaml(config)))) == config  # type: ignore[arg-type]


def test_every_problem_of_every_source_is_reported(plain: dict[str, Any]) -> None:
    put(
        plain,
        "data.sources",
        [
            {"repeats": 0},
            SOURCE | {"wieght": 1},
            SOURCE | {"captions": {"prefx": "a", "tag_dropout": 2}},
            SOURCE | {"augmentations": ["blur"]},
            "photos",
        ],
    )
    found = problems(plain)
    assert found == {
        "data.sources[0].image_dir": (
            "data.sources[0].image_dir has no value and needs one. "
            "Set data.sources[0].image_dir=..."
        ),
        "data.sources[0].repeats": "data.sources[0].repeats is 0; it must be at least 1.",
        "data.sources[1].wieght": (
            "data.sources[1].wieght is not an option. Did you mean data.sources[1].weight?"
        ),
        "data.sources[2].captions.prefx": (
            "data.sources[2].captions.prefx is not an option. "
            "Did you mean data.sources[2].captions.prefix?"
        ),
        "data.sources[2].captions.tag_dropout": (
            "data.sources[2].captions.tag_dropout is 2.0; it must be between 0 and 1."
        ),
        "data.sources[3].augmentations": (
            "data.sources[3].augmentations is ['blur']; it must be a list of flip, random_crop, "
            "crop_jitter, color or null."
        ),
        "data.sources[4]": found["data.sources[4]"],
        "data.sources[4].image_dir": found["data.sources[4].image_dir"],
    }
    assert found["data.sources[4]"].startswith("data.sources[4] is 'photos'; it must be a group")


@pytest.mark.parametrize("group", ["data", "adapter.unet"])
def test_a_value_in_place_of_a_group_is_refused(plain: dict[str, Any], group: str) -> None:
    put(plain, group, 3)
    found = problems(plain)
    assert found[group].startswith(f"{group} is 3; it must be a group with ")


def test_a_missing_value_that_others_refer_to_is_reported_once() -> None:
    found = problems(composed("~experiment"))
    assert set(found) == {"model.path", "data.image_dir"}
    found = problems(composed("~experiment", "output_dir=???", "model.path=a", "data.image_dir=b"))
    assert set(found) == {"output_dir", "data.latent_cache.directory"}


def test_a_reference_to_nothing_is_refused_with_its_key() -> None:
    raw = composed("~experiment", "model.path=a", "data.image_dir=b", "adapter.alpha=${.rnak}")
    found = problems(raw)
    assert list(found) == ["adapter.alpha"]


def test_rules_wait_until_types_are_right(plain: dict[str, Any]) -> None:
    put(plain, "objective.min_timestep", 900)
    put(plain, "objective.max_timestep", 100)
    assert list(problems(plain)) == ["objective.min_timestep"]
    put(plain, "adapter.rank", "eight")
    assert list(problems(plain)) == ["adapter.rank"]


def test_every_option_has_a_sentence_of_help() -> None:
    texts = {key: field.metadata["help"] for key, field, _ in walk_options(RunConfig)}
    assert len(texts) >= 65
    assert [key for key, text in texts.items() if not text.endswith(".")] == []

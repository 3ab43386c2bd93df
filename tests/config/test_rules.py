"""Rules across fields: each fires on its mistake and on nothing else."""

from __future__ import annotations

import math
from dataclasses import asdict, is_dataclass
from typing import Any

import pytest

from loralab import demo
from loralab.config.choices import (
    ImageSet,
    PredictionType,
    Preservation,
    SourceLayout,
    TimestepSpread,
    Weighting,
)
from loralab.config.parse import parse_config
from loralab.config.rules import RULES, check_rules
from loralab.config.source_records import SourceRecord
from loralab.errors import ConfigError
from tests.config.adapter_cases import ADAPTER_CASES
from tests.config.conftest import put
from tests.config.data_cases import DATA_CASES
from tests.config.optimizer_cases import OPTIMIZER_CASES
from tests.config.schedule_cases import SCHEDULE_CASES

HELD_OUT = {"validation.fraction": 0.1}
JUDGED = {"result_metrics.clip_path": "clip", "preview.prompts": ["a fox"]}

# rule, the values that break it, the key it names, a neighbouring choice that is fine.
CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    (
        "_some_part_is_adapted",
        {"adapter.unet.enabled": False, "adapter.text_encoder.enabled": False},
        "adapter",
        {"adapter.unet.enabled": False},
    ),
    (
        "_some_part_is_adapted",
        {"adapter.unet.targets": []},
        "adapter.unet.targets",
        {"adapter.text_encoder.enabled": False, "adapter.text_encoder.targets": []},
    ),
    ("_buckets_fit", {"data.buckets.step": 60}, "data.buckets.step", {"data.buckets.step": 32}),
    ("_buckets_fit", {"data.resolution": 500}, "data.resolution", {"data.resolution": 576}),
    (
        "_buckets_fit",
        {"data.buckets.min_side": 576},
        "data.buckets.min_side",
        {"data.buckets.min_side": 576, "data.buckets.enabled": False},
    ),
    (
        "_buckets_fit",
        {"data.buckets.max_side": 448},
        "data.buckets.max_side",
        {"data.buckets.max_side": 512},
    ),
    (
        "separators_differ",
        {"data.captions.secondary_separator": ";;;", "data.captions.keep_tags_separator": ";"},
        "data.captions.keep_tags_separator",
        {"data.captions.secondary_separator": ";;;", "data.captions.keep_tags_separator": "|||"},
    ),
    (
        "separators_differ",
        {"data.captions.secondary_separator": ","},
        "data.captions.secondary_separator",
        {"data.captions.separator": ";", "data.captions.secondary_separator": ","},
    ),
    (
        "separators_differ",
        {"data.captions.separator": ""},
        "data.captions.separator",
        {"data.captions.separator": " "},
    ),
    (
        "separators_differ",
        {"data.captions.separator": "\n"},
        "data.captions.separator",
        {"data.captions.separator": ";"},
    ),
    *(
        (
            "tags_are_known_beforehand",
            {"data.captions.wildcards": True, f"data.captions.{name}": value},
            f"data.captions.{name}",
            {f"data.captions.{name}": value},
        )
        for name, value in (("tag_top_k", 5), ("tag_min_count", 2), ("tag_balance", 0.5))
    ),
    (
        "separators_differ",
        {
            "data.image_dir": None,
            "data.sources": [SourceRecord(image_dir="a", captions={"secondary_separator": ","})],
        },
        "data.sources[0].captions.secondary_separator",
        {
            "data.image_dir": None,
            "data.sources": [SourceRecord(image_dir="a", captions={"secondary_separator": ";"})],
        },
    ),
    *(
        (
            "tag_file_is_of_the_run",
            {
                "data.image_dir": None,
                "data.sources": [SourceRecord(image_dir="a", captions={name: value})],
            },
            f"data.sources[0].captions.{name}",
            {f"data.captions.{name}": value},
        )
        for name, value in (("tag_occurrence_file", True), ("tag_occurrence_order", "name"))
    ),
    (
        "_timesteps_are_a_range",
        {"objective.min_timestep": 500, "objective.max_timestep": 500},
        "objective.min_timestep",
        {"objective.min_timestep": 499, "objective.max_timestep": 500},
    ),
    (
        "_timesteps_have_a_window",
        {"objective.timestep_spread": TimestepSpread.stratified, "data.batch_size": 1},
        "objective.timestep_spread",
        {"objective.timestep_spread": TimestepSpread.stratified, "data.batch_size": 2},
    ),
    (
        "_timesteps_have_a_window",
        {"objective.timestep_spread": TimestepSpread.antithetic, "data.batch_size": 1},
        "objective.timestep_spread",
        {
            "objective.timestep_spread": TimestepSpread.antithetic,
            "data.batch_size": 1,
            "trainer.accumulate_grad_batches": 2,
        },
    ),
    (
        "_prediction_type_fits",
        {"model.prediction_type": PredictionType.epsilon, "objective.zero_terminal_snr": True},
        "objective.zero_terminal_snr",
        {"model.prediction_type": PredictionType.v_prediction, "objective.zero_terminal_snr": True},
    ),
    (
        "_prediction_type_fits",
        {
            "model.prediction_type": PredictionType.flow_prediction,
            "objective.zero_terminal_snr": True,
            "preview.prompts": [],
        },
        "objective.zero_terminal_snr",
        {"objective.zero_terminal_snr": True},  # the base's own files will tell
    ),
    (
        "_prediction_type_fits",
        {
            "model.prediction_type": PredictionType.epsilon,
            "objective.weighting": Weighting.scale_v_like_noise,
        },
        "objective.weighting",
        {
            "model.prediction_type": PredictionType.v_prediction,
            "objective.weighting": Weighting.scale_v_like_noise,
        },
    ),
    (
        "_prediction_type_fits",
        {
            "model.prediction_type": PredictionType.sample,
            "objective.weighting": Weighting.v_like,
        },
        "objective.weighting",
        {
            "model.prediction_type": PredictionType.epsilon,
            "objective.weighting": Weighting.v_like,
        },
    ),
    (
        "_prediction_type_fits",
        {
            "model.prediction_type": PredictionType.flow_prediction,
            "preview.prompts": ["a cat"],
        },
        "preview.prompts",
        {"model.prediction_type": PredictionType.flow_prediction, "preview.prompts": []},
    ),
    (
        "_preservation_has_an_outside",
        {"objective.preservation": Preservation.outside_mask},
        "objective.preservation",
        {"objective.preservation": Preservation.output},
    ),
    *(
        (
            "_noise_options_have_an_effect",
            {f"objective.{name}": value},
            f"objective.{name}",
            {f"objective.{name}": value, f"objective.{base}": 0.1},
        )
        for name, value, base in (
            ("noise_offset_random", True, "noise_offset"),
            ("noise_offset_adaptive", 0.1, "noise_offset"),
            ("input_perturbation_random", True, "input_perturbation"),
        )
    ),
    *(
        (
            "_options_are_read",
            {f"objective.{name}": value},
            f"objective.{name}",
            {f"objective.{name}": value, f"objective.{reader}": chosen},
        )
        for name, value, reader, chosen in (
            ("huber_c", 0.2, "loss", "smooth_l1"),
            ("huber_schedule", "constant", "loss", "huber"),
            ("min_snr_gamma", 3.0, "weighting", "soft_min_snr"),
            ("p2_gamma", 0.5, "weighting", "p2"),
            ("v_like_scale", 0.5, "weighting", "v_like"),
            ("logit_normal_mean", 0.5, "timestep_sampling", "logit_normal"),
            ("logit_normal_std", 0.5, "timestep_sampling", "logit_normal"),
            ("preservation_weight", 0.5, "preservation", "output"),
            ("multires_discount", 0.5, "multires_iterations", 4),
        )
    ),
    (
        "_one_warmup",
        {"scheduler.warmup_steps": 5, "scheduler.warmup_fraction": 0.1},
        "scheduler.warmup_steps",
        {"scheduler.warmup_fraction": 0.1},
    ),
    ("_recipe_numbers", {"optimizer.lr": "fast"}, "optimizer.lr", {"optimizer.lr": 0}),
    ("_recipe_numbers", {"optimizer.lr": -1e-4}, "optimizer.lr", {"optimizer.lr": 1}),
    ("_recipe_numbers", {"optimizer.lr": math.inf}, "optimizer.lr", {"optimizer.lr": 1}),
    (
        "_recipe_numbers",
        {"trainer.gradient_clip_val": math.nan},
        "trainer.gradient_clip_val",
        {"trainer.gradient_clip_val": 1},
    ),
    (
        "_recipe_numbers",
        {"trainer.accumulate_grad_batches": 0},
        "trainer.accumulate_grad_batches",
        {"trainer.accumulate_grad_batches": 2},
    ),
    (
        "_recipe_numbers",
        {"trainer.log_every_n_steps": 2.5},
        "trainer.log_every_n_steps",
        {"trainer.log_every_n_steps": 1},
    ),
    (
        "_recipe_numbers",
        {"trainer.gradient_clip_val": -1},
        "trainer.gradient_clip_val",
        {"trainer.gradient_clip_val": None},
    ),
    (
        "_steps_or_epochs",
        {"trainer.max_steps": 10, "trainer.max_epochs": 2},
        "trainer.max_steps",
        {"trainer.max_steps": -1, "trainer.max_epochs": 2},
    ),
    (
        "_steps_or_epochs",
        {"trainer.max_steps": None, "trainer.max_epochs": None},
        "trainer.max_steps",
        {"trainer.max_steps": None, "trainer.max_epochs": 1},
    ),
    (
        "_steps_or_epochs",
        {"trainer.max_steps": 10, "scheduler.warmup_steps": 10},
        "scheduler.warmup_steps",
        {"trainer.max_steps": 10, "scheduler.warmup_steps": 9},
    ),
    (
        "_fused_steps_are_not_clipped",
        {"optimizer.fused": True, "trainer.precision": "bf16-mixed"},
        "optimizer.fused",
        {"optimizer.fused": True, "trainer.precision": "32-true"},
    ),
    (
        "_fused_steps_are_not_clipped",
        {"optimizer.fused": True, "trainer.precision": "16-mixed"},
        "optimizer.fused",
        {
            "optimizer.fused": True,
            "trainer.precision": "16-mixed",
            "trainer.gradient_clip_val": None,
        },
    ),
    (
        "_one_validation_source",
        {"validation.folder": "held-out", **HELD_OUT},
        "validation.fraction",
        {"validation.folder": "held-out"},
    ),
    (
        "_one_validation_source",
        {"validation.every_n_steps": 10},
        "validation.every_n_steps",
        {"validation.every_n_steps": 10, **HELD_OUT},
    ),
    (
        "_demo_base_is_for_the_demo",
        {"model.path": str(demo.base_dir())},
        "model.path",
        {"model.path": str(demo.base_dir()), "data.image_dir": str(demo.images_dir("train"))},
    ),
    (
        "_recordings_are_whole",
        {"record": True, "model.prompt_weights": True},
        "record",
        {"record": True},
    ),
    (
        "_recordings_are_whole",
        {
            "record": True,
            "fused_backward": True,
            "trainer.gradient_clip_val": None,
            "callbacks.dead_adapters": None,
        },
        "record",
        {"record": True},
    ),
    (
        "_kept_settings_are_settings",
        {"compat.kept_settings": {"lernrate": 1}},
        "compat.kept_settings",
        {"compat.kept_settings": {"unet_lr": 1}},
    ),
    (
        "_recordings_are_whole",
        {"record": True, "trainer.devices": 2},
        "record",
        {"record": True, "trainer.devices": 1},
    ),
    (
        "_templates_fill",
        {"export.name_template": "{nmae}"},
        "export.name_template",
        {"export.name_template": "{name}-{run_id}"},
    ),
    (
        "_templates_fill",
        {"export.name_template": "a/{name}"},
        "export.name_template",
        {"export.name_template": "a {name}"},
    ),
    ("_templates_fill", {"name": "a/b"}, "name", {"name": "a-b"}),
    ("_templates_fill", {"run_id": ".."}, "run_id", {"run_id": None}),
    (
        "metric_exists",
        {"optimized_metric": "val/los"},
        "optimized_metric",
        {"optimized_metric": "val/loss_at_timestep/125"},
    ),
    (
        "metric_exists",
        {"optimized_metric": "result/clip_prompt"},
        "optimized_metric",
        {"optimized_metric": "result/clip_prompt", **JUDGED},
    ),
    (
        "previews_are_there_to_be_judged",
        {**JUDGED, "preview.prompts": []},
        "preview.prompts",
        JUDGED,
    ),
    (
        "previews_are_there_to_be_judged",
        {**JUDGED, "result_metrics.compare_with": ImageSet.held_out},
        "result_metrics.compare_with",
        {**JUDGED, "result_metrics.compare_with": ImageSet.held_out, **HELD_OUT},
    ),
    (
        "_layouts_are_distinct",
        {"export.layouts": ["kohya", "kohya"]},
        "export.layouts",
        {"export.layouts": ["diffusers", "kohya"]},
    ),
    (
        "images_are_named_once",
        {"data.sources": [SourceRecord(image_dir="a")]},
        "data.image_dir",
        {"data.sources": [{"image_dir": "a"}], "data.image_dir": None},
    ),
    (
        "images_are_named_once",
        {"data.image_dir": None},
        "data.image_dir",
        {"data.repeats": 2},
    ),
    (
        "images_are_named_once",
        {
            "data.sources": [SourceRecord(image_dir="a")],
            "data.image_dir": None,
            "data.repeats": 2,
        },
        "data.repeats",
        {"data.sources": [{"image_dir": "a", "repeats": 2}], "data.image_dir": None},
    ),
    (
        "metadata_options_have_metadata",
        {"data.metadata_file": "captions.csv"},
        "data.metadata_file",
        {"data.metadata_file": "captions.csv", "data.layout": SourceLayout.metadata},
    ),
    (
        "metadata_options_have_metadata",
        {
            "data.image_dir": None,
            "data.sources": [SourceRecord(image_dir="a", metadata_file="captions.csv")],
        },
        "data.sources[0].metadata_file",
        {
            "data.image_dir": None,
            "data.layout": SourceLayout.metadata,
            "data.sources": [{"image_dir": "a", "metadata_file": "captions.csv"}],
        },
    ),
    (
        "limits_leave_room",
        {"data.image_filter.min_side": 512, "data.image_filter.max_side": 256},
        "data.image_filter.min_side",
        {"data.image_filter.min_side": 512, "data.image_filter.max_side": 512},
    ),
    (
        "held_out_files_are_named_once",
        {"validation.files": ["a.png", "./a.png"]},
        "validation.files",
        {"validation.files": ["a.png", "b.png"]},
    ),
    (
        "_one_validation_source",
        {"validation.files": ["a.png"], "validation.folder": "held"},
        "validation.folder",
        {"validation.files": ["a.png"], "validation.every_n_steps": 10},
    ),
    *SCHEDULE_CASES,
    *DATA_CASES,
    *OPTIMIZER_CASES,
    *ADAPTER_CASES,
    ("_quality_is_that_of_the_demo", {"demo_quality": 1}, "demo_quality", {"demo_quality": 0}),
]


@pytest.mark.parametrize(("rule", "broken", "key", "fine"), CASES)
def test_a_rule_refuses_its_mistake_and_lets_its_neighbour_pass(
    plain: dict[str, Any], rule: str, broken: dict[str, Any], key: str, fine: dict[str, Any]
) -> None:
    good = parse_config(with_values(plain, fine))
    assert [problem for check in RULES for problem in check(good)] == []
    with pytest.raises(ConfigError) as caught:
        parse_config(with_values(plain, broken))
    (problem,) = caught.value.problems
    assert problem.key == key
    assert problem.message.startswith((key, "adapter.unet.enabled"))
    assert problem.message.endswith(".")


@pytest.mark.parametrize(("rule", "broken", "key", "fine"), CASES)
def test_the_problem_comes_from_the_rule_of_that_name(
    plain: dict[str, Any], rule: str, broken: dict[str, Any], key: str, fine: dict[str, Any]
) -> None:
    config = parse_config(plain)
    for name, value in broken.items():
        assign(config, name, value)
    assert [check.__name__ for check in RULES if list(check(config))] == [rule]


def test_every_rule_has_a_case() -> None:
    assert {rule.__name__ for rule in RULES} == {case[0] for case in CASES}


def test_all_broken_rules_are_reported_together(plain: dict[str, Any]) -> None:
    config = parse_config(plain)
    config.ema.enabled, config.ema.use_for = True, []
    config.objective.min_timestep, config.objective.max_timestep = 10, 5
    config.data.buckets.step = 60
    assert {problem.key for problem in check_rules(config)} == {
        "ema.use_for",
        "objective.min_timestep",
        "data.buckets.step",
    }


def with_values(data: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with values put in by their dotted keys."""
    import copy

    data = copy.deepcopy(data)
    for key, value in values.items():
        if key == "data.sources":
            value = [asdict(source) if is_dataclass(source) else source for source in value]
        put(data, key, value)
    return data


def assign(config: Any, key: str, value: Any) -> None:
    """Set a value of the typed configuration by its dotted key."""
    *groups, name = key.split(".")
    node = config
    for group in groups:
        node = node[group] if isinstance(node, dict) else getattr(node, group)
    if isinstance(node, dict):
        node[name] = value
    elif key == "export.layouts":
        from loralab.config.choices import Layout

        setattr(node, name, [Layout[word] for word in value])
    else:
        setattr(node, name, value)

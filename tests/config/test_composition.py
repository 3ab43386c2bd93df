"""What a mistake on the command line is answered with, before torch is loaded."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from loralab.app.composition import composition_problems
from loralab.config.store import register
from tests.config.conftest import composed


@functools.cache
def answers(*arguments: str) -> dict[str, str]:
    """Compose, which must fail, and return our words by key."""
    with pytest.raises((HydraException, OmegaConfBaseException, ValueError)) as caught:
        composed(*arguments)
    problems = composition_problems(caught.value, arguments)
    assert problems
    return {problem.key: problem.message for problem in problems}


CASES = [
    (
        "adapter.decompose_factr=4",
        "adapter.decompose_factr",
        "adapter.decompose_factr is not an option. Did you mean adapter.decompose_factor?",
    ),
    ("adapter.ranc=4", "adapter.ranc", "adapter.ranc is not an option. Did you mean adapter.rank?"),
    ("seeed=4", "seeed", "seeed is not an option. Did you mean seed?"),
    (
        "data.captions.prefixx=a",
        "data.captions.prefixx",
        "data.captions.prefixx is not an option. Did you mean data.captions.prefix?",
    ),
    ("adapter.rank=eight", "adapter.rank", "adapter.rank is 'eight'; it must be a whole number."),
    (
        "model.prediction_type=vpred",
        "model.prediction_type",
        "model.prediction_type is 'vpred'; it must be one of epsilon, v_prediction, sample, "
        "flow_prediction or null.",
    ),
    (
        "adapter=lroa",
        "adapter",
        "adapter=lroa does not exist. Did you mean adapter=lora?",
    ),
    (
        "experiment=zzzz",
        "experiment",
        "experiment=zzzz does not exist. Allowed: demo, demo_subject, sd15_style",
    ),
    ("experiment=null", "experiment", "experiment is null; to run without one write ~experiment."),
    ("optimizer.lrr=1", "optimizer.lrr", "optimizer.lrr is not in this recipe."),
    ("trainer.max_step=1", "trainer.max_step", "Did you mean trainer.max_steps?"),
    ("callbacks.progress.every=1", "callbacks.progress.every", "is not in this recipe."),
]


@pytest.mark.parametrize(("argument", "key", "message"), CASES)
def test_a_mistake_is_answered_with_key_and_remedy(argument: str, key: str, message: str) -> None:
    found = answers(argument)
    assert list(found) == [key]
    assert message in found[key]
    assert found[key].endswith(".") or found[key].endswith("?")


@pytest.mark.parametrize("argument", [argument for argument, _, _ in CASES])
def test_nobody_is_told_to_force_a_key_in_with_a_plus(argument: str) -> None:
    (message,) = answers(argument).values()
    assert "+" not in message


def test_every_mistake_is_reported_at_once_and_right_ones_are_left_alone() -> None:
    arguments = ("adapter.ranc=4", "seed=1", "logger=cvs", "adapter.rank=eight", "data.repeats=2")
    assert set(answers(*arguments)) == {"adapter.ranc", "logger", "adapter.rank"}


def test_each_value_of_a_sweep_is_tried() -> None:
    found = composition_problems(ValueError("sweep"), ("-m", "adapter.rank=4,eight"))
    assert [problem.message for problem in found] == [
        "adapter.rank is 'eight'; it must be a whole number."
    ]


def test_what_is_no_override_at_all_is_said_to_be_none() -> None:
    (problem,) = composition_problems(ValueError("parse"), ("adapter.rank",))
    assert problem.message.startswith("'adapter.rank' is not an override; write key=value")


def test_a_value_without_a_key_is_no_override() -> None:
    register()
    (problem,) = composition_problems(ValueError("no key"), ("=4",))
    assert str(problem).startswith("'=4' is not an override; write key=value")


def test_several_values_without_a_sweep_are_refused() -> None:
    register()
    arguments = ("optimizer.lr=1e-4,1e-3", "data.batch_size=0")
    found = [str(problem) for problem in composition_problems(ValueError("several"), arguments)]
    assert found[0].startswith("optimizer.lr=1e-4,1e-3 gives several values, which takes -m")
    assert "data.batch_size is 0; it must be at least 1." in found
    (one,) = composition_problems(ValueError("batch"), (*arguments, "sweep=lr_rank"))
    assert one.key == "data.batch_size"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "experiment is not an option; a file of that group begins with # @package _global_"),
        (b"# @package _global_\nname: caf\xe9\n", "not UTF-8 text; save it as UTF-8"),
    ],
)
@pytest.mark.parametrize("form", [("--config-dir", "{}"), ("--config-dir={}",), ("-cd", "{}")])
def test_a_preset_that_is_none_is_told_what_it_lacks(
    tmp_path: Path, content: bytes, words: str, form: tuple[str, ...]
) -> None:
    register()
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_bytes(content)
    arguments = (*(part.format(tmp_path) for part in form), "experiment=own")
    (problem,) = composition_problems(ValueError("preset"), arguments)
    assert words in str(problem)


def test_a_plugin_that_is_not_there_is_named_with_the_command_that_installs_it() -> None:
    register()
    missing = MissingConfigException("missing", missing_cfg_file="hydra/sweeper/optuna")
    (problem,) = composition_problems(missing, ())
    assert str(problem) == "hydra/sweeper=optuna is not installed: pip install 'loralab[search]'."

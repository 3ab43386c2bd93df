"""The groups that the plan shows are those that the optimizer gets, for every kind and recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from loralab.app.dry_run import check_run
from loralab.app.optimizers import planned_groups
from tests.effects.conftest import tiny as tiny  # the fixture
from tests.effects.runs import Tiny

PATTERNS = "adapter.unet.lr_scale_by_pattern=[to_q:0.5]"
CASES = [
    ("adapter=lora",),
    ("adapter=lora", "adapter.lora_plus_ratio=16", PATTERNS),
    ("adapter=lora", "adapter.unet.targets=[full]", "adapter.unet.weight_decay=0.3"),
    ("adapter=dora", "adapter.decay_vectors=false", "adapter.unet.lora_plus_ratio=4"),
    ("adapter=locon", "optimizer=muon"),
    ("adapter=loha", PATTERNS),
    ("adapter=lokr", "adapter.decompose_both=true"),
    ("adapter=tucker",),
    ("adapter=dylora", "adapter.decay_vectors=false"),
    ("adapter=oft",),
    ("adapter=boft", "adapter.rank=4"),
    ("optimizer=sgd",),
    ("optimizer=prodigy", "adapter.text_encoder.lr_scale=1", "optimizer.lr=0.5"),
    ("optimizer=adamw_schedulefree",),
    ("optimizer=adafactor_relative", "adapter.text_encoder.lr_scale=1", "optimizer.lr=null"),
    ("adapter.weight_dtype=bf16",),
]


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_planned_groups_are_those_of_the_run(tiny: Tiny, overrides: tuple[str, ...]) -> None:
    config, survey = tiny.config(*overrides), tiny.survey(*overrides)
    built = tiny.build(*overrides)
    optimizer = built.job.module.configure_optimizers()["optimizer"]
    real = [
        (
            group["name"],
            len(group["params"]),
            sum(parameter.numel() for parameter in group["params"]),
            group["initial_lr"] if config.optimizer.get("lr") is not None else None,
            group.get("weight_decay"),
        )
        for group in optimizer.param_groups
    ]
    planned = [
        (g.name, g.num_tensors, g.num_parameters, g.rate, g.weight_decay)
        for g in planned_groups(config, survey.parts)
    ]
    assert planned == real


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of the table of groups by name."""
    lines = text.partition("Parameter groups")[2].splitlines()[1:]
    cells = [line.split() for line in lines if line.strip().startswith(("unet", "text_encoder"))]
    return {line[0]: line for line in cells}


def test_the_plan_has_a_row_for_every_group_under_the_name_that_is_logged(tiny: Tiny) -> None:
    run = tiny.run("adapter.lora_plus_ratio=16", PATTERNS, "logger=csv", "optimizer.lr=0.001")
    shown = rows(run.stdout)
    logged = {key.partition("/")[2]: float(value) for row in run.rows()
              for key, value in row.items() if key.startswith("learning_rate/")}  # fmt: skip
    assert set(shown) == set(logged) == {
        "unet", "unet_up", "unet_x0.5", "unet_x0.5_up", "text_encoder", "text_encoder_up",
    }  # fmt: skip
    for name, cells in shown.items():
        assert float(cells[-2]) == pytest.approx(logged[name])
        assert cells[-1] == "0.01"
    assert sum(int(cells[-4].replace(",", "")) for cells in shown.values()) == len(
        run.checkpoint(3)["state_dict"]
    )


def test_a_row_says_what_sets_a_group_apart(tiny: Tiny) -> None:
    choice = ("adapter=dora", "adapter.lora_plus_ratio=4", "adapter.decay_vectors=false", PATTERNS,
              "adapter.text_encoder.enabled=false")  # fmt: skip
    groups = planned_groups(tiny.config(*choice), tiny.survey(*choice).parts)
    assert {group.name: group.role for group in groups} == {
        "unet": "all others",
        "unet_up": "second matrices (LoRA+)",
        "unet_no_decay": "vectors",
        "unet_x0.5": "modules at 0.5 × the rate",
        "unet_x0.5_up": "modules at 0.5 × the rate, second matrices (LoRA+)",
        "unet_x0.5_no_decay": "modules at 0.5 × the rate, vectors",
    }


def test_the_plan_says_where_a_rate_is_found_or_not_needed(tiny: Tiny) -> None:
    equal = "adapter.text_encoder.lr_scale=1"
    found = tiny.run("optimizer=prodigy", "optimizer.lr=0.5", equal, "trainer.max_steps=1").stdout
    assert "found × 0.5" in found
    own = tiny.run("optimizer=adafactor_relative", "optimizer.lr=null", equal,
                   "trainer.max_steps=1").stdout  # fmt: skip
    assert "its own" in own


def test_check_shows_the_groups_without_training(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    check_run([*tiny._base(), "adapter.lora_plus_ratio=4", f"hydra.run.dir={tmp_path}"])
    text = capsys.readouterr().out
    assert {"unet", "unet_up"} <= rows(text).keys()
    assert "nothing was trained" in text

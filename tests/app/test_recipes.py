"""Recipes: what may be called, and what is said when it cannot be."""

from __future__ import annotations

import sys

import pytest
import torch

from loralab.app.recipes import EXTRAS, check_arguments, recipe_arguments, recipe_target
from loralab.errors import ConfigError


@pytest.mark.parametrize(("package", "extra"), sorted(EXTRAS.items()))
def test_a_missing_extra_is_one_sentence_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # Python's own way to make a package absent
    target = "bitsandbytes.optim.AdamW8bit" if package == "bitsandbytes" else f"{package}.Any"
    with pytest.raises(ConfigError) as caught:
        recipe_target("optimizer", {"_target_": target})
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].key == "optimizer._target_"
    assert f"needs {package}" in str(caught.value)
    assert f"pip install 'loralab[{extra}]'" in str(caught.value)


def test_a_target_outside_the_allow_list_is_never_imported() -> None:
    assert "antigravity" not in sys.modules
    with pytest.raises(ConfigError, match=r"optimizer\._target_ is antigravity\.x.*allow-list"):
        recipe_target("optimizer", {"_target_": "antigravity.x"})
    assert "antigravity" not in sys.modules


def test_a_name_that_only_begins_like_an_allowed_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="allow-list"):
        recipe_target("trainer", {"_target_": "lightning.pytorch.TrainerOfMyOwn"})


def test_every_unknown_argument_is_named_with_its_nearest_spelling() -> None:
    recipe = {"_target_": "torch.optim.AdamW", "weight_decai": 0.1, "epss": 1e-8, "lr": 1.0}
    with pytest.raises(ConfigError) as caught:
        check_arguments("optimizer", recipe, given=1)
    assert [problem.key for problem in caught.value.problems] == [
        "optimizer.weight_decai",
        "optimizer.epss",
    ]
    assert "weight_decay?" in str(caught.value)


def test_arguments_are_what_is_no_marker() -> None:
    recipe = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5}
    assert recipe_target("optimizer", recipe) is torch.optim.SGD
    assert recipe_arguments(recipe) == {"lr": 0.5}

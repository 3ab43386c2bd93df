"""A run by the rules of another trainer."""

from __future__ import annotations

import pytest

from loralab.config.choices import Compat
from loralab.config.compat import SWITCHES
from loralab.config.parse import parse_config
from loralab.errors import ConfigError
from tests.effects.registry import effect
from tests.effects.runs import Tiny, changed


@effect("compat.kind")
def test_sd_scripts_sets_its_options_and_the_run_keeps_them(tiny: Tiny) -> None:
    run = tiny.run("compat=sd_scripts")
    objective = run.config.objective
    assert (objective.reduction, objective.weight_rule) == ("by_count", "sd_scripts")
    assert objective.noise_rule == "sd_scripts"
    data = run.config.data
    assert (data.buckets.match, data.resize_filter) == ("ratio", "area")
    assert (data.latent_cache.posterior, data.prior.rotate) == ("frozen", False)
    assert data.captions.tag_rule == "sd_scripts"


@effect("compat.kind")
def test_sd_scripts_trains_what_its_options_train_one_by_one(tiny: Tiny) -> None:
    # Micro-batches of one and of two images, two to a step: by counts is another loss.
    accumulate = "trainer.accumulate_grad_batches=2"
    ours, theirs = tiny.run(accumulate), tiny.run(accumulate, "compat=sd_scripts")
    words = [
        f"{key}={getattr(value, 'name', value)}"
        for key, value in SWITCHES[Compat.sd_scripts].items()
    ]
    by_hand = tiny.run(accumulate, *words)
    assert changed(theirs.adapter, by_hand.adapter) == []
    assert changed(theirs.adapter, ours.adapter) != []


@effect("compat.kind")
def test_uncached_latents_are_drawn_anew_as_in_sd_scripts(tiny: Tiny) -> None:
    config = tiny.config("compat=sd_scripts", "data.latent_cache.enabled=false")
    assert config.data.latent_cache.posterior.name == "resample"


@effect("compat.kind")
def test_an_unknown_trainer_is_refused(tiny: Tiny) -> None:
    foreign = {**tiny.compose(), "compat": {"kind": "one_trainer"}}
    with pytest.raises(ConfigError, match=r"^compat\.kind is 'one_trainer'; it must be one of"):
        parse_config(foreign)

"""Which of several runs is better: pairing, chance, and what may not be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loralab.app.comparison import chance_of_a_larger, compare, conclusion, table
from loralab.errors import UserError


def write_run(folder: Path, losses: Sequence[float], /, **changes: Any) -> Path:
    """Write what a run leaves of its last validation."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: a\n")
    images = [
        {"name": f"{number}.png", "digest": f"d{number}", "size": "64x64"}
        for number in range(len(losses))
    ]
    facts = {
        "seed": 0,
        "timesteps": [250, 750],
        "prediction_type": "epsilon",
        "images": images,
        "losses": {"2": [9.0] * len(losses), "10": list(losses)},
        **changes,
    }
    (folder / "validation.json").write_text(json.dumps(facts))
    return folder


# Two-sided 5 % points of Student's t, from the printed tables.
@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042),
     (120, 1.980)],
)  # fmt: skip
def test_chance_is_that_of_the_printed_tables(freedom: int, t: float) -> None:
    assert chance_of_a_larger(t, freedom) == pytest.approx(0.05, abs=5e-5)
    assert chance_of_a_larger(-t, freedom) == chance_of_a_larger(t, freedom)
    assert chance_of_a_larger(0.0, freedom) == 1.0


def test_difference_is_paired_over_the_images(tmp_path: Path) -> None:
    # Image by image 0.1, 0.2, 0.3, 0.2: mean 0.2, deviation sqrt(0.02 / 3), error half of that;
    # t = 0.2 / 0.040825 = 4.899 with 3 degrees of freedom lies beyond 3.182.
    one = write_run(tmp_path / "one", [1.0, 2.0, 3.0, 4.0])
    other = write_run(tmp_path / "other", [1.1, 2.2, 3.3, 4.2])
    best, row = compare([other, one])
    assert (best.run, best.verdict, best.step) == (str(one), "best", 10)
    assert best.loss == 2.5
    assert best.stderr == pytest.approx(math.sqrt(5 / 3) / 2)
    assert row.difference == pytest.approx(0.2)
    assert row.difference_stderr == pytest.approx(math.sqrt(0.02 / 3) / 2)
    assert 0.01 < row.p_value < 0.05
    assert row.verdict == "worse than the best"
    assert conclusion([best, row]) == f"{one} is better than 1 of 1 others."


def test_small_difference_is_not_distinguishable(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [1.0, 2.0, 3.0])
    other = write_run(tmp_path / "other", [1.3, 1.9, 2.9])
    best, row = compare([one, other])
    assert row.verdict == "not distinguishable"
    assert "No run is better than another beyond chance" in conclusion([best, row])


def test_same_losses_are_not_distinguishable(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, [1.0, 2.0]) for name in "ab"]
    assert [row.verdict for row in compare(runs)] == ["best", "not distinguishable"]


def test_the_more_runs_the_more_it_takes(tmp_path: Path) -> None:
    # The difference of the test above passes between two runs; among five there are ten pairs.
    write_run(tmp_path / "a", [1.0, 2.0, 3.0, 4.0])
    for name in "bcde":
        write_run(tmp_path / name, [1.1, 2.2, 3.3, 4.2])
    assert {row.verdict for row in compare([tmp_path])[1:]} == {"not distinguishable"}


def test_order_and_names_of_the_images_do_not_matter(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [1.0, 2.0])
    images = [{"name": "x.png", "digest": f"d{n}", "size": "64x64"} for n in (1, 0)]
    other = write_run(tmp_path / "other", [2.0, 1.0], images=images)
    assert compare([one, other])[1].difference == 0


IMAGES = [{"name": f"new-{n}.png", "digest": f"e{n}", "size": "64x64"} for n in range(3)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, ["validation.seed", "is 1", "is 0", "alike"]),
        ({"timesteps": [500, 700]}, ["validation.strata", "[500, 700]", "[250, 750]"]),
        ({"prediction_type": "v_prediction"}, ["model.prediction_type", "v_prediction", "epsilon"]),
        ({"images": IMAGES}, ["held-out images", "differ: 0.png, 1.png, 2.png, ..."]),
        ({"losses": {"2": [1.0]}}, ["validation.json is damaged", "leave it out"]),
        ({"losses": {}}, ["validation.json is damaged"]),
        ({"losses": {"4": [1.0, math.nan, 1.0]}}, ["not finite", "leave it out"]),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    one = write_run(tmp_path / "one", [1.0, 2.0, 3.0])
    other = write_run(tmp_path / "other", [1.0, 2.0, 3.0], **changes)
    with pytest.raises(UserError) as error:
        compare([one, other])
    assert str(other) in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [1.0, 2.0])
    single = write_run(tmp_path / "single", [1.0])
    bare = write_run(tmp_path / "bare", [1.0, 2.0])
    (bare / "validation.json").unlink()
    with pytest.raises(UserError) as error:
        compare([one, single, bare, tmp_path / "nowhere"])
    text = str(error.value)
    for words in (f"{single} holds one image out", f"{bare}/validation.json is missing",
                  "validation=default", f"{tmp_path}/nowhere does not exist"):  # fmt: skip
        assert words in text, text


def test_one_run_given_twice_is_one_run(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [1.0, 2.0])
    with pytest.raises(UserError, match="at least two"):
        compare([one, one])


def test_runs_of_a_sweep_are_named_by_what_was_varied(tmp_path: Path) -> None:
    for number, name in enumerate(("optimizer.lr=1", "optimizer.lr=2")):
        write_run(tmp_path / "sweeps" / name, [1.0 + number, 2.0])
    rows = compare([tmp_path / "sweeps"])
    assert [row["run"] for row in table(rows)] == ["optimizer.lr=1", "optimizer.lr=2"]

"""Kohya files hold exactly the keys, shapes and numbers that sd-scripts' rules give."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters.key_rules import expected, written

# (family, with convolutions) -> modules of all parts, as sd-scripts counts them.
COUNTS = {
    ("sd1", False): 192 + 72, ("sd1", True): 278 + 72, ("sd2", False): 192 + 138,
    ("sd2", True): 278 + 138, ("sdxl", False): 722 + 264, ("sdxl", True): 788 + 264,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "has_conv"),
    [case if case[0] != "sdxl" else pytest.param(*case, marks=pytest.mark.slow)
     for case in COUNTS],
)  # fmt: skip
def test_keys_shapes_and_numbers_are_those_of_the_rules(
    tmp_path: Path, family: str, has_conv: bool
) -> None:
    rules = expected(family, has_conv=has_conv)
    assert len(rules) == 3 * COUNTS[family, has_conv]
    shapes, dtypes = written(family, tmp_path, has_conv=has_conv)
    assert shapes == rules
    assert dtypes == {"F16"}

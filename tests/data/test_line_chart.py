"""Charts: round ticks, lines where the numbers are, a file that is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from loralab.data.line_chart import COLORS, save_line_chart, ticks


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 199, 9, [0, 50, 100, 150, 200]),
        (0, 0.002, 6, [0, 0.0005, 0.001, 0.0015, 0.002]),
        (0, 1e-4, 6, [0, 2e-5, 4e-5, 6e-5, 8e-5, 1e-4]),
        (30, 95, 6, [40, 60, 80, 100]),
    ],
)
def test_ticks_are_round_and_reach_the_end(
    low: float, high: float, most: int, expected: list[float]
) -> None:
    assert ticks(low, high, most=most) == pytest.approx(expected)


@given(low=st.floats(-1e3, 1e3), span=st.floats(1e-3, 1e6), most=st.integers(3, 12))
def test_ticks_are_few_and_never_stop_short(low: float, span: float, most: int) -> None:
    found = ticks(low, low + span, most=most)
    assert 2 <= len(found) <= most + 1
    assert found[-1] >= low + span or found[-1] == pytest.approx(low + span)


def rows_of(path: Path, color: str) -> dict[int, float]:
    """Return the mean row of a color in each column of the plot below the names."""
    wanted = ImageColor.getrgb(color)
    with Image.open(path) as picture:
        pixels = picture.convert("RGB").load()
        assert pixels is not None
        size = picture.size
    found: dict[int, list[int]] = {}
    for x in range(size[0]):
        for y in range(30, size[1]):
            distance = sum(abs(a - b) for a, b in zip(pixels[x, y], wanted, strict=True))
            if distance < 60:  # shrinking blurs a little
                found.setdefault(x, []).append(y)
    return {x: sum(rows) / len(rows) for x, rows in found.items()}


def test_lines_lie_where_their_numbers_are(tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    lines = {"high": [(0, 1.0), (10, 1.0)], "low": [(0, 0.5), (10, 0.5)]}
    save_line_chart(path, lines, title="two levels", x_label="step")
    high, low = (rows_of(path, color) for color in COLORS[:2])
    # The plot reaches from y = 44 (the top tick, 1) to y = 344 (0), and from x = 84 to x = 776.
    assert list(high.values()) == pytest.approx([44] * len(high), abs=1)
    assert list(low.values()) == pytest.approx([194] * len(low), abs=1)
    assert min(high) == pytest.approx(84, abs=1)
    assert max(high) == pytest.approx(776, abs=1)
    assert [file.name for file in tmp_path.iterdir()] == ["chart.png"]


@pytest.mark.parametrize("line", [[(0, 0.0)], [(0, 0.0), (1, 0.0)], [(5, 2.0)]])
def test_lines_without_length_or_height_make_a_picture(
    tmp_path: Path, line: list[tuple[float, float]]
) -> None:
    save_line_chart(tmp_path / "chart.png", {"flat": line}, title="", x_label="")
    assert (tmp_path / "chart.png").stat().st_size > 1000

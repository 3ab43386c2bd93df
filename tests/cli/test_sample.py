"""`loralab sample` on a real run: the grid, its lines, its refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from loralab.app.prompt_lines import Shot, parse_line
from loralab.cli.main import app
from loralab.errors import UserError
from tests.effects.runs import Tiny, TinyRun
from tests.tiny import make_images, make_tiny_sd1

QUICK = ("--steps", "2")
SIDE, MARGIN, HEADING = 64, 12, 30  # of a grid's cells


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures without a name go to the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    root: Path = tmp_path_factory.mktemp("sample")
    make_images(root / "images", count=4)
    tiny = Tiny(root, base=make_tiny_sd1(root / "base"), images=root / "images")
    return tiny.run("optimizer.lr=0.1")


def draw(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["sample", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def cells(path: Path, *, columns: int) -> list[list[np.ndarray]]:
    """Return the pictures of a grid by row."""
    grid = np.asarray(Image.open(path).convert("RGB")).astype(int)
    height = (len(grid) - HEADING) // (SIDE + 24)
    return [
        [
            grid[(top := HEADING + row * (SIDE + 24)) : top + SIDE,
                 (left := MARGIN + column * (SIDE + MARGIN)) : left + SIDE]
            for column in range(columns)
        ]
        for row in range(height)
    ]  # fmt: skip


def test_the_grid_shows_the_base_beside_the_adapter(trained: TinyRun, tmp_path: Path) -> None:
    run, file = tmp_path / "run.png", tmp_path / "file.png"
    prompts = ("--prompt", "red circle", "--prompt", "blue square")
    draw(trained.folder, *prompts, "--out", run, *QUICK)
    rows = cells(run, columns=2)
    assert len(rows) == 2
    assert all((base != lora).any() for base, lora in rows)
    assert (rows[0][0] != rows[1][0]).any(), "prompts differ"
    # The file is its own recipe: base, sizes and schedule are those of the run.
    draw(trained.folder / "adapters" / "tiny.safetensors", *prompts, "--out", file, *QUICK)
    assert run.read_bytes() == file.read_bytes()


def test_a_line_has_size_seed_and_strength_of_its_own(trained: TinyRun, tmp_path: Path) -> None:
    lines, out = tmp_path / "prompts.txt", tmp_path / "grid.png"
    lines.write_text("# two\nred circle --am 0\n\nred circle --d 5 --am 0.5 --w 32 --s 3\n")
    draw(trained.folder, "--prompts", lines, "--out", out, *QUICK)
    (first, second) = cells(out, columns=2)
    assert (first[0] == first[1]).all(), "strength 0 is the base"
    assert (second[0] != second[1]).any()
    assert (second[0] != first[0]).any(), "another seed"
    assert (second[0][:, :8] == 255).all(), "a narrow picture stands in the middle"


def test_a_strength_is_a_multiple_of_the_update(trained: TinyRun, tmp_path: Path) -> None:
    file = trained.folder / "adapters" / "tiny.safetensors"
    halved, out = tmp_path / "halved.safetensors", [tmp_path / f"{n}.png" for n in "ab"]
    tensors = load_file(file)
    save_file({k: t / 2 if k.endswith(".alpha") else t for k, t in tensors.items()}, halved)
    base = trained.config.model.path
    options = ("--prompt", "red circle", "--adapter-only", "--width", 64, "--height", 64, *QUICK)
    draw(file, *options, "--strength", 0.5, "--out", out[0])
    draw(halved, *options, "--base", base, "--out", out[1])
    one, other = (cells(path, columns=1)[0][0] for path in out)
    assert abs(one - other).max() <= 1  # of 255


DEFAULTS = Shot("", "", 64, 64, 0, 25, 7.5, 1.0)


def test_options_of_a_line_are_read() -> None:
    found = parse_line("a -- b, (c:1.2) --n bad hands --l 3.5 --h 96", DEFAULTS, place="x")
    assert found == Shot("a -- b, (c:1.2)", "bad hands", 64, 96, 0, 25, 3.5, 1.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "neither --prompt nor --prompts"),
        (("--prompt", "a", "--out", "there.png"), "is there already; choose another name"),
        (("--prompt", "a", "--out", "x.jpg"), "must end in .png"),
        (("--prompt", "a", "--width", "60"), "sides must be multiples of 16"),
        (("--prompts", "wrong.txt"), "--x; it must be one of --n, --w"),
        (("--prompts", "range.txt"), "the steps must be a whole number from 1 to 500"),
        (("--prompts", "empty.txt"), "holds no prompt"),
        (("--prompts", "none.txt"), "cannot be read as a text file"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    trained: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...],
    said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("there.png").touch()
    Path("wrong.txt").write_text("a --x 3\n")
    Path("range.txt").write_text("a --s 0\n")
    Path("empty.txt").write_text("# nothing\n")
    with pytest.raises(UserError) as caught:
        draw(trained.folder, *arguments)
    assert said in str(caught.value)
    assert len(caught.value.problems) == 1
    assert not Path("sample.png").exists()


def test_a_file_that_names_no_base_needs_one(trained: TinyRun, tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file(trained.adapter, bare)
    with pytest.raises(UserError, match="does not say which base it was trained on; give --base"):
        draw(bare, "--prompt", "a")
    with pytest.raises(UserError, match="nowhere does not exist"):
        draw(tmp_path / "nowhere", "--prompt", "a")

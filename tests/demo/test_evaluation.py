"""Do the procedures that judge drawings find what is really there? Shown on real pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from loralab.demo import images_dir
from loralab.demo.concepts import list_canvases, list_concepts
from loralab.demo.evaluation.content import ContentMatcher, shapes
from loralab.demo.evaluation.drawing import KeptDrawings, Painter, held_out_subjects
from loralab.demo.evaluation.scores import Judge, Score
from loralab.demo.evaluation.sheet import CELL, HEADINGS, draw_sheet
from loralab.demo.evaluation.style import STYLES, real_tiles, statistics
from loralab.demo.icons import FOLDER, Icons, read_icons, to_picture, to_tile
from loralab.models.registry import load_family
from tests.tiny import make_tiny_sd1


@pytest.fixture(scope="module")
def icons() -> Icons:
    return read_icons()


@pytest.fixture(scope="module")
def judge(icons: Icons) -> Judge:
    return Judge(icons)


def real_cyanotypes(icons: Icons) -> dict[str, Tensor]:
    """Return the demo's own images on their canvases, label -> (3, H, W) uint8."""
    labels = {parts[0]: label for label, parts in icons.captions.items()}
    found = {}
    for split in ("train", "validation"):
        for path in sorted(images_dir(split).glob("*.png")):
            name = path.with_suffix(".txt").read_text("utf-8").split(", ")[1].strip()
            pixels = np.asarray(Image.open(path).convert("RGB"))
            found[labels[name]] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    return found


def on_white(height: int, width: int, box: tuple[int, int, int, int], value: float) -> Tensor:
    """Return a white picture with a box of rows a to b and columns c to d."""
    picture = torch.ones(3, height, width)
    top, bottom, left, right = box
    picture[:, top:bottom, left:right] = value
    return picture


# -- icons ---------------------------------------------------------------------------------------


def test_icons_show_every_subject_of_the_base_in_both_styles(icons: Icons) -> None:
    assert icons.labels == list(list_concepts())
    assert {style: tuple(tiles.shape) for style, tiles in icons.tiles.items()} == {
        style: (len(icons.labels), 3, 32, 32) for style in ("noto", "twemoji")
    }
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1.2e6


def test_icons_stand_at_their_own_place_in_the_sheet(icons: Icons) -> None:
    position = icons.labels.index("sunflower")
    sheet = Image.open(FOLDER / "noto.png").convert("RGB")
    row, column = divmod(position, sheet.width // 32)
    cut = sheet.crop((column * 32, row * 32, column * 32 + 32, row * 32 + 32))
    torch.testing.assert_close(icons.tiles["noto"][position], to_picture(cut))


def test_a_tile_is_the_visible_part_in_the_middle_of_a_square() -> None:
    tile = to_tile(on_white(64, 64, (20, 36, 5, 37), 0.0))  # 16 x 32 pixels, black
    black = tile.amax(0) < 0.5
    rows, columns = black.any(1).nonzero().flatten(), black.any(0).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1])) == (8, 23)
    assert len(columns) >= 30


@pytest.mark.parametrize("size", [(64, 64), (80, 48), (48, 80)])
def test_a_tile_does_not_depend_on_canvas_and_place(size: tuple[int, int]) -> None:
    wanted = to_tile(on_white(64, 64, (10, 42, 10, 42), 0.2))
    found = to_tile(on_white(*size, (12, 44, 7, 39), 0.2))
    torch.testing.assert_close(found, wanted)


def test_an_empty_picture_is_a_white_tile() -> None:
    torch.testing.assert_close(to_tile(torch.ones(3, 48, 80)), torch.ones(3, 32, 32))


# -- content -------------------------------------------------------------------------------------


def test_shapes_compare_as_the_correlation_of_luminance() -> None:
    """Against NumPy's correlation; the tiles are so smooth that the blur changes nothing."""
    ramp = torch.linspace(0, 1, 32)
    across, down = ramp.expand(3, 32, 32), ramp[:, None].expand(3, 32, 32)
    mixed = 0.3 * across + 0.7 * down
    found = shapes(torch.stack([across, down, mixed])) @ shapes(across[None]).T
    wanted = np.corrcoef([t[0].flatten().numpy() for t in (across, down, mixed)])[0]
    np.testing.assert_allclose(found[:, 0].numpy(), wanted, atol=0.02)


def test_brightness_contrast_and_colour_do_not_count(icons: Icons) -> None:
    tiles = icons.tiles["noto"][:8]
    torch.testing.assert_close(shapes(0.5 * tiles + 0.3), shapes(tiles), atol=1e-4, rtol=0)
    gray = (tiles * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    torch.testing.assert_close(shapes(gray.expand_as(tiles)), shapes(tiles), atol=1e-4, rtol=0)


def test_real_cyanotypes_find_their_subject(icons: Icons, judge: Judge) -> None:
    pictures = real_cyanotypes(icons)
    assert len(pictures) >= 70
    score = judge.score(list(pictures), list(pictures.values()))
    assert score.content_top1 >= 0.95
    assert score.content_top5 == 1


def test_real_prints_in_other_inks_find_their_subject(icons: Icons) -> None:
    matcher, wanted = ContentMatcher(icons), torch.arange(len(icons.labels))
    for style, tiles in real_tiles(icons).items():
        assert (matcher.rank(tiles)[:, 0] == wanted).float().mean() >= 0.95, style


def test_another_artists_icon_finds_its_subject_far_more_often_than_chance(icons: Icons) -> None:
    """The yardstick of the documentation: a third of them, where chance finds one in 343."""
    matcher = ContentMatcher(Icons(icons.captions, {"twemoji": icons.tiles["twemoji"]}))
    right = matcher.rank(icons.tiles["noto"]) == torch.arange(len(icons.labels))[:, None]
    assert 0.25 < right[:, 0].float().mean() < 0.5
    assert 0.4 < right[:, :5].any(1).float().mean() < 0.7


@pytest.mark.parametrize("kind", ["grain", "clouds", "empty"])
def test_noise_is_not_right_more_often_than_chance(judge: Judge, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = list(judge.names)
    count = 3 * len(labels)
    side = {"grain": 64, "clouds": 6, "empty": 1}[kind]
    noise = torch.rand(count, 3, side, side, generator=generator)
    if kind == "empty":
        noise = torch.ones_like(noise)
    pictures = torch.nn.functional.interpolate(noise, size=(64, 64), mode="bilinear")
    score = judge.score(labels * 3, list((pictures * 255).byte()))
    # 3 are expected; more than 9 of 1029 has a probability of 1 in 900 (Poisson)
    assert score.content_top1 * count <= 9


# -- style ---------------------------------------------------------------------------------------


def test_the_classifier_tells_the_style_of_icons_it_has_not_seen(
    icons: Icons, judge: Judge
) -> None:
    held_out = [icons.labels.index(label) for label in list_canvases("validation")]
    right = {
        style: judge.classifier.classify(tiles[held_out]).count(style) / len(held_out)
        for style, tiles in real_tiles(icons).items()
    }
    assert len(held_out) == 24
    assert set(right) == set(STYLES)
    for style in ("cyanotype", "grayscale", "sepia"):
        assert right[style] >= 0.95, style
    for style in ("noto", "twemoji"):  # often of the same colours; chance is 0.2
        assert right[style] >= 0.6, style
    assert judge.style_accuracy() == pytest.approx(sum(right.values()) / 5)
    assert judge.style_accuracy() >= 0.85


def test_the_classifier_knows_the_demos_own_images(icons: Icons, judge: Judge) -> None:
    pictures = real_cyanotypes(icons)
    score = judge.score(list(pictures), list(pictures.values()))
    assert score.styles["cyanotype"] >= 0.97
    assert sum(score.styles.values()) == pytest.approx(1)


def test_no_other_icon_is_taken_for_the_new_style(icons: Icons, judge: Judge) -> None:
    held_out = [icons.labels.index(label) for label in list_canvases("validation")]
    tiles = real_tiles(icons)
    others = torch.cat([tiles[style][held_out] for style in STYLES if style != "cyanotype"])
    assert judge.classifier.classify(others).count("cyanotype") <= 0.03 * len(others)


def test_statistics_of_a_plain_colour_are_those_worked_by_hand() -> None:
    """0.2, 0.4, 0.8: brightness 0.3858, so it is a dark tone; all of it is flat."""
    tile = torch.tensor([0.2, 0.4, 0.8])[:, None, None].expand(1, 3, 32, 32)
    wanted = [0.2 - 0.3858, 0.8 - 0.3858, *[0.0] * 10, 1.0, 1.0]
    torch.testing.assert_close(statistics(tile)[0], torch.tensor(wanted), atol=1e-4, rtol=0)


# -- drawings ------------------------------------------------------------------------------------


class CountingPainter(Painter):
    """Counts how often it draws."""

    count = 0

    def draw(self, word: str, *, seed: int) -> list[Tensor]:
        self.count += 1
        return super().draw(word, seed=seed)


@pytest.fixture
def painter(icons: Icons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CountingPainter:
    """A tiny base that draws one subject of each canvas, in two steps."""
    monkeypatch.setattr("loralab.demo.evaluation.drawing.NUM_STEPS", 2)
    subjects = {subject.size: subject for subject in held_out_subjects(icons)}
    family = load_family("sd1", make_tiny_sd1(tmp_path / "base"))
    return CountingPainter(family, list(subjects.values()))


def keep(painter: Painter, root: Path, **options: int) -> KeptDrawings:
    return KeptDrawings(painter, root / "kept", base=root / "base", options=options)


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_prompts_are_the_captions_of_the_validation_images(icons: Icons) -> None:
    captions = {path.read_text("utf-8").strip() for path in images_dir("validation").glob("*.txt")}
    subjects = held_out_subjects(icons)
    assert {subject.prompt("cyanotype") for subject in subjects} == captions
    assert len(subjects) == 24


def test_drawings_have_the_canvas_of_their_subject(painter: CountingPainter) -> None:
    drawings = painter.draw("noto", seed=0)
    assert [tuple(d.shape[1:]) for d in drawings] == [(64, 64), (80, 48), (48, 80)]
    assert {d.dtype for d in drawings} == {torch.uint8}
    assert not equal(drawings, painter.draw("noto", seed=1))


def test_kept_drawings_are_made_once(painter: CountingPainter, tmp_path: Path) -> None:
    first = keep(painter, tmp_path).draw("noto", seed=0)
    again = keep(painter, tmp_path).draw("noto", seed=0)
    assert painter.count == 1
    assert equal(first, again)


def test_kept_drawings_hold_for_one_base_word_seed_and_loading(
    painter: CountingPainter, tmp_path: Path
) -> None:
    keep(painter, tmp_path).draw("noto", seed=0)
    keep(painter, tmp_path).draw("cyanotype", seed=0)
    keep(painter, tmp_path).draw("noto", seed=1)
    keep(painter, tmp_path, clip_skip=2).draw("noto", seed=0)
    with (tmp_path / "base" / "model_index.json").open("a") as file:
        file.write("\n")
    keep(painter, tmp_path).draw("noto", seed=0)
    assert painter.count == 5


def test_damaged_drawings_are_made_anew(painter: CountingPainter, tmp_path: Path) -> None:
    first = keep(painter, tmp_path).draw("noto", seed=0)
    [path] = (tmp_path / "kept").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert equal(keep(painter, tmp_path).draw("noto", seed=0), first)
    assert painter.count == 2


def test_the_sheet_has_a_column_for_each_subject_and_a_row_for_each_model() -> None:
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 80, 48)
    names = [f"subject {number}" for number in range(14)]  # more than one band
    sheet = draw_sheet(names, {"base": ([red] * 14, names), "real": ([red] * 14, None)})
    rows = np.asarray(sheet)[:, HEADINGS + CELL // 2]  # through the middle of the first column
    is_red = (rows == [255, 0, 0]).all(1)
    assert (np.diff(is_red.astype(int)) == 1).sum() == 4
    assert is_red.sum() == 4 * CELL


def test_a_score_is_plain_data() -> None:
    score = Score(0.5, 1.0, {"noto": 1.0}, ["cat face"])
    assert json.loads(json.dumps(score.shares())) == {
        "content_top1": 0.5,
        "content_top5": 1.0,
        "styles": {"noto": 1.0},
    }

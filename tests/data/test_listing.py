"""What the layouts list: folders, folders named by repeats, metadata files in five formats."""

import csv
import json
import sys
from pathlib import Path

import pytest

from loralab.data.index import read_images
from loralab.data.listing import list_folder, list_metadata, list_numbered_folders, repeated
from tests.data.pictures import noise_image

KEY = "data.image_dir"


def listed(listing, root):
    return {
        entry.path.relative_to(root).as_posix(): (entry.captions, entry.class_text, entry.repeats)
        for entry in listing.entries
    }


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise_image(32, 32, seed).save(path)
    return path


def test_plain_folder_lists_all_files_with_the_class_text(photos):
    listing = list_folder(photos, key=KEY, class_text="a photo")
    assert listed(listing, photos) == dict.fromkeys(
        ["a.jpg", "b.png", "nested/c.webp"], (None, "a photo", 1)
    )
    assert [entry.repeats for entry in repeated(listing, 3).entries] == [3, 3, 3]


def test_masks_are_no_images(photos):
    save(photos / "b.mask.png")
    assert len(list_folder(photos, key=KEY).entries) == 3


@pytest.fixture
def numbered(tmp_path):
    """Two folders named as sd-scripts reads them, one file with a caption of its own."""
    root = tmp_path / "train"
    save(root / "10_red dog" / "a.png", 1)
    save(root / "10_red dog" / "b.png", 2)
    save(root / "2_dog" / "deeper" / "c.png", 3)
    (root / "10_red dog" / "b.txt").write_text("a dog asleep")
    return root


def test_numbered_folders_give_repeats_and_class_text(numbered):
    assert listed(list_numbered_folders(numbered, key=KEY), numbered) == {
        "10_red dog/a.png": (None, "red dog", 10),
        "10_red dog/b.png": (None, "red dog", 10),
        "2_dog/deeper/c.png": (None, "dog", 2),
    }


def test_caption_files_beat_the_text_of_the_folder(numbered):
    scan = read_images(list_numbered_folders(numbered, key=KEY).entries, key=KEY)
    assert [record.captions for record in scan.records] == [
        ("red dog",),
        ("a dog asleep",),
        ("dog",),
    ]
    assert [record.repeats for record in scan.records] == [10, 10, 2]


def test_folders_without_a_number_and_images_beside_them_are_refused(numbered, problems_of):
    save(numbered / "loose.png")
    save(numbered / "0_none" / "x.png")
    save(numbered / "cats" / "x.png")
    messages = problems_of(list_numbered_folders, numbered, key=KEY)
    assert len(messages) == 3
    assert messages[0] == (
        f"data.layout is numbered_folders, but {numbered / '0_none'} is not named by repeats and "
        "text; rename it to something like 10_dog, or set data.layout=folder."
    )
    assert any("images outside of such folders" in message for message in messages)


def test_a_numbered_folder_without_images_is_refused(numbered, problems_of):
    (numbered / "5_cat").mkdir()
    (numbered / "notes").mkdir()  # no folder of images by its name
    assert problems_of(list_numbered_folders, numbered, key=KEY) == [
        f"{numbered / '5_cat'} holds no image; fill it or take it out."
    ]


CAPTIONS = {"a.jpg": "a wide photo", "b.png": "a square photo", "nested/c.webp": "a tall photo"}


def write_jsonl(path, column="text"):
    rows = [{"file_name": name, column: text} for name, text in CAPTIONS.items()]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def write_csv(path, column="text"):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", column), *CAPTIONS.items()])


def write_parquet(path, column="text"):
    import pyarrow as arrow
    from pyarrow.parquet import write_table

    columns = {"file_name": list(CAPTIONS), column: list(CAPTIONS.values())}
    write_table(arrow.table(columns), path)


WRITERS = {".jsonl": write_jsonl, ".csv": write_csv, ".parquet": write_parquet}
EXPECTED = {name: ((text,), None, 1) for name, text in CAPTIONS.items()}


@pytest.mark.parametrize("extension", WRITERS)
def test_table_is_found_by_its_name_and_read(photos, extension):
    WRITERS[extension](photos / f"metadata{extension}")
    listing = list_metadata(photos, key=KEY)
    assert (listed(listing, photos), listing.bad) == (EXPECTED, [])


@pytest.mark.parametrize("extension", WRITERS)
def test_another_column_and_another_name_are_read_when_named(photos, extension):
    WRITERS[extension](photos / f"words{extension}", column="caption")
    listing = list_metadata(
        photos, key=KEY, metadata_file=f"words{extension}", caption_column="caption"
    )
    assert listed(listing, photos) == EXPECTED


@pytest.mark.parametrize("extension", WRITERS)
def test_missing_column_is_answered_with_those_there_are(photos, problems_of, extension):
    path = photos / f"metadata{extension}"
    WRITERS[extension](path, column="caption")
    assert problems_of(list_metadata, photos, key=KEY) == [
        f"{path} has no column text; set data.caption_column to one of file_name, caption."
    ]


def test_captions_of_several_lines_and_lists_of_captions_are_kept(photos):
    rows = [
        {"file_name": "a.jpg", "text": "one\n two "},
        {"file_name": "b.png", "text": ["three", "four"]},
        {"file_name": "nested/c.webp", "text": "five"},
    ]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    captions = [entry.captions for entry in list_metadata(photos, key=KEY).entries]
    assert captions == [("one", "two"), ("three", "four"), ("five",)]


def test_every_disagreement_between_table_and_folder_is_told(photos):
    rows = [
        {"file_name": "a.jpg", "text": "first"},
        {"file_name": "a.jpg", "text": "second"},
        {"file_name": "gone.png", "text": "lost"},
        {"file_name": "b.png", "text": ""},
    ]
    path = photos / "metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    listing = list_metadata(photos, key=KEY)
    assert listing.entries == []
    assert [str(problem) for problem in listing.bad] == [
        f"{path}, line 1, names a.jpg, which is listed twice; keep one of them.",
        f"{path}, line 2, names a.jpg, which is listed twice; keep one of them.",
        f"{path}, line 3, names gone.png, which is not one image in {photos}; mend it.",
        f"{path}, line 4, has no caption for b.png; write one.",
        f"{photos / 'nested/c.webp'} is not listed in metadata.jsonl; add it there, or take it "
        "out.",
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("metadata.jsonl", '{"file_name": "a.jpg"', "line 1, is not JSON"),
        ("metadata.jsonl", "[1]", "line 1, is not a JSON object"),
        ("metadata.jsonl", "", "has no column file_name"),
        ("metadata.csv", "", "has no column file_name"),
        ("metadata.parquet", "rubbish", "is not a whole parquet file"),
        ("meta.json", "[]", "is not a JSON object of the form {image: {caption, tags}}"),
        ("meta.xml", "<a/>", "is not a .jsonl, .csv, .parquet or .json file"),
    ],
)
def test_file_that_is_not_what_its_name_says_is_refused(photos, problems_of, name, content, says):
    (photos / name).write_text(content)
    (message,) = problems_of(list_metadata, photos, key=KEY, metadata_file=name)
    assert message.startswith(str(photos / name))
    assert says in message


def test_no_metadata_file_or_two_of_them_are_refused(photos, problems_of):
    (message,) = problems_of(list_metadata, photos, key=KEY)
    assert "data.metadata_file is null" in message
    assert "none of metadata.jsonl, metadata.csv, metadata.parquet" in message
    write_jsonl(photos / "metadata.jsonl")
    write_csv(photos / "metadata.csv")
    (message,) = problems_of(list_metadata, photos, key=KEY)
    assert "more than one of" in message
    (message,) = problems_of(list_metadata, photos, key=KEY, metadata_file="x.csv")
    assert message.startswith("data.metadata_file is x.csv; there is no such file")


def test_parquet_without_its_library_names_the_install_command(photos, problems_of, monkeypatch):
    (photos / "metadata.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # what Python does for a package that is not
    (message,) = problems_of(list_metadata, photos, key=KEY)
    assert message == (
        f"{photos / 'metadata.parquet'} takes pyarrow to read; install it with: "
        "pip install 'loralab[parquet]'."
    )


def sd_scripts(photos, content, **options):
    (photos / "meta.json").write_text(json.dumps(content))
    return list_metadata(photos, key=KEY, metadata_file="meta.json", **options)


@pytest.mark.parametrize(
    "name",
    [
        lambda photos, file: str(photos / file),  # full path
        lambda photos, file: str((photos / file).with_suffix("")),  # without its extension
        lambda photos, file: file,  # from the folder
        lambda photos, file: Path(file).stem,  # as merge_captions_to_metadata.py writes it
        lambda photos, file: f"/elsewhere/train/{Path(file).name}",  # made on another machine
        lambda photos, file: f"D:\\train\\{Path(file).name}",
    ],
)
def test_sd_scripts_file_names_images_in_any_of_its_ways(photos, name):
    content = {
        name(photos, file): {"caption": text, "train_resolution": [64, 64]}
        for file, text in CAPTIONS.items()
    }
    listing = sd_scripts(photos, content)
    assert (listed(listing, photos), listing.bad) == (EXPECTED, [])


def test_sd_scripts_caption_is_caption_and_tags(photos):
    content = {
        "a": {"caption": "a photo", "tags": "wide, noise"},
        "b": {"tags": "square, noise"},
        "c": {"caption": "tall"},
    }
    captions = [entry.captions for entry in sd_scripts(photos, content).entries]
    assert captions == [("a photo, wide, noise",), ("square, noise",), ("tall",)]
    captions = [entry.captions for entry in sd_scripts(photos, content, separator=" |").entries]
    assert captions[0] == ("a photo | wide, noise",)


def test_name_of_two_images_is_refused(photos):
    save(photos / "other" / "c.webp")
    listing = sd_scripts(photos, {"a": {"tags": "x"}, "b": {"tags": "x"}, "c": {"tags": "x"}})
    assert [entry.path.name for entry in listing.entries] == ["a.jpg", "b.png"]
    assert len(listing.bad) == 3  # the name, and both images that stay without a caption


def write_rows(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))


OTHERS = [{"file_name": name, "text": "fine"} for name in ("b.png", "nested/c.webp")]


@pytest.mark.parametrize("value", [5, True, {"a": 1}, ["a", 5], 1.5])
def test_captions_that_are_no_text_are_refused_with_place_and_value(photos, problems_of, value):
    path = photos / "metadata.jsonl"
    write_rows(path, {"file_name": "a.jpg", "text": value}, *OTHERS)
    (message,) = problems_of(list_metadata, photos, key=KEY)
    wrong = 5 if isinstance(value, list) else value
    assert message == (
        f"{path}, line 1, has {wrong!r} as the caption of a.jpg; write text, or a list of texts."
    )


def test_missing_value_of_a_table_is_no_caption(photos):
    (photos / "metadata.jsonl").write_text(
        "\n".join(['{"file_name": "a.jpg", "text": NaN}', *(json.dumps(row) for row in OTHERS)])
    )
    (problem,) = list_metadata(photos, key=KEY).bad
    assert "has no caption for a.jpg" in problem.message


def test_characters_that_no_text_has_are_refused(photos, problems_of):
    for text in ("a\ud800b", "a\0b"):
        write_rows(photos / "metadata.jsonl", {"file_name": "a.jpg", "text": text}, *OTHERS)
        (message,) = problems_of(list_metadata, photos, key=KEY)
        assert "line 1, has a character that is no text in the caption of a.jpg" in message
        assert "write it anew" in message


def test_rows_without_a_file_name_are_refused(photos, problems_of):
    for name in (None, "", 5, ["a.jpg"]):
        write_rows(photos / "metadata.jsonl", {"file_name": name, "text": "x"}, *OTHERS)
        (message,) = problems_of(list_metadata, photos, key=KEY)
        assert "line 1, names no image" in message
        assert f"file_name is {name!r}" in message


def test_csv_texts_that_fall_apart_at_their_commas_are_refused(photos, problems_of):
    path = photos / "metadata.csv"
    path.write_text("file_name,text\na.jpg,a red, round dog\nb.png,x\nnested/c.webp,x,y\n")
    first, second = problems_of(list_metadata, photos, key=KEY)
    assert first == (
        f"{path}, line 2, has 3 cells and the head has 2; put texts that have commas in quotes."
    )
    assert second.startswith(f"{path}, line 4, has 3 cells")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file_name,text\na.jpg," + "x" * 140_000 + "\n", "line 2, is not CSV (field larger"),
        ('file_name,text\na.jpg,"never closed\nb.png,x\n', "is not CSV (unexpected end of data)"),
        ("file_name,text,text\na.jpg,one,two\n", "has the column text twice"),
    ],
)
def test_csv_that_cannot_be_read_as_one_is_refused(photos, problems_of, text, says):
    path = photos / "metadata.csv"
    path.write_text(text)
    (message,) = problems_of(list_metadata, photos, key=KEY)
    assert message.startswith(str(path))
    assert says in message


def test_a_key_given_twice_in_json_is_refused(photos, problems_of):
    (photos / "meta.json").write_text('{"a": {"caption": "one"}, "a": {"caption": "two"}}')
    (message,) = problems_of(list_metadata, photos, key=KEY, metadata_file="meta.json")
    assert '"a" stands there twice' in message


def test_json_that_is_too_deep_is_refused(photos, problems_of):
    (photos / "metadata.jsonl").write_text("[" * 100_000)
    (message,) = problems_of(list_metadata, photos, key=KEY)
    assert "line 1, is not JSON" in message


def test_a_path_from_the_folder_beats_the_bare_name_of_another_image(photos):
    save(photos / "nested" / "b.png", 7)
    entries = {
        "a.jpg": {"tags": "x"},
        "b.png": {"tags": "the upper one"},
        "nested/b.png": {"tags": "the lower one"},
        "c": {"tags": "x"},
    }
    (photos / "meta.json").write_text(json.dumps(entries))
    listing = list_metadata(photos, key=KEY, metadata_file="meta.json")
    assert listing.bad == []
    captions = {path: captions for path, (captions, _, _) in listed(listing, photos).items()}
    assert captions["b.png"] == ("the upper one",)
    assert captions["nested/b.png"] == ("the lower one",)

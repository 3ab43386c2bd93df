"""Scanning a folder: what is recorded, and what is refused in which words."""

import hashlib
import os

import pytest
from PIL import Image

from loralab.data.index import scan_folder
from tests.data.pictures import noise_image

KEY = "data.image_dir"


def test_records_come_sorted_by_path_with_displayed_sizes(records, photos):
    found = [(r.path.relative_to(photos).as_posix(), r.width, r.height) for r in records]
    assert found == [("a.jpg", 96, 60), ("b.png", 64, 64), ("nested/c.webp", 48, 80)]


def test_digest_is_the_start_of_the_sha256_of_the_file(records, photos):
    expected = hashlib.sha256((photos / "a.jpg").read_bytes()).hexdigest()[:32]
    assert records[0].digest == expected


def test_repeats_and_weight_are_kept(photos):
    record = scan_folder(photos, key=KEY, repeats=3, weight=0.5)[0]
    assert (record.repeats, record.weight) == (3, 0.5)


def test_all_lines_of_a_caption_file_are_kept_stripped_and_without_empty_ones(photos):
    (photos / "a.txt").write_text("\n  first line \r\n\r\nsecond line\n", newline="")
    assert scan_folder(photos, key=KEY)[0].captions == ("first line", "second line")


def test_byte_order_mark_is_not_part_of_the_caption(photos):
    (photos / "a.txt").write_text("été", encoding="utf-8-sig")
    assert scan_folder(photos, key=KEY)[0].captions == ("été",)


def test_upper_case_extensions_are_found(photos):
    (photos / "a.jpg").rename(photos / "a.JPG")
    assert len(scan_folder(photos, key=KEY)) == 3


def test_hidden_files_and_folders_are_left_out(photos):
    (photos / "._a.jpg").write_bytes(b"left by a Mac")
    (photos / ".thumbnails").mkdir()
    (photos / ".thumbnails" / "x.png").write_bytes(b"")
    assert len(scan_folder(photos, key=KEY)) == 3


def test_linked_folder_is_searched_and_a_link_back_up_is_not_followed(photos, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    noise_image(8, 8).save(outside / "d.png")
    (outside / "d.txt").write_text("linked")
    (photos / "linked").symlink_to(outside)
    (photos / "nested" / "up").symlink_to(photos)
    captions = [record.captions[0] for record in scan_folder(photos, key=KEY)]
    assert captions == ["a wide photo", "a square photo", "linked", "a tall photo"]


def test_two_files_with_the_same_bytes_are_both_kept(photos):
    (photos / "copy.png").write_bytes((photos / "b.png").read_bytes())
    (photos / "copy.txt").write_text("again")
    records = scan_folder(photos, key=KEY)
    assert len(records) == 4
    assert len({record.digest for record in records}) == 3


def test_missing_folder_is_named_with_its_key(tmp_path, problems_of):
    root = tmp_path / "PHOTOS"
    assert problems_of(scan_folder, root, key=KEY) == [
        f"data.image_dir is {root}; this folder does not exist. Give an existing folder of images."
    ]


def test_file_in_place_of_a_folder_is_called_so(photos, problems_of):
    (message,) = problems_of(scan_folder, photos / "a.jpg", key="data.prior.image_dir")
    assert message.startswith(f"data.prior.image_dir is {photos / 'a.jpg'}; this is a file")


def test_folder_without_images_is_refused(tmp_path, problems_of):
    (message,) = problems_of(scan_folder, tmp_path, key=KEY)
    assert message == (
        f"data.image_dir is {tmp_path}; this folder has no png, jpg, jpeg, webp, bmp, avif or tiff "
        "file. Give a folder of images."
    )


def test_images_of_other_formats_are_refused_rather_than_skipped(photos, problems_of):
    Image.new("RGB", (4, 4)).save(photos / "d.gif")
    (message,) = problems_of(scan_folder, photos, key=KEY)
    assert message == (
        f"{photos / 'd.gif'} is not a png, jpg, jpeg, webp, bmp, avif or tiff file; convert it or "
        "take it out of the folder."
    )


def test_missing_caption_names_the_file_to_write_and_the_option(photos, problems_of):
    (photos / "a.txt").unlink()
    assert problems_of(scan_folder, photos, key=KEY) == [
        f"{photos / 'a.jpg'} has no caption file a.txt; write one, or set data.caption_extension "
        "to the extension in use."
    ]


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_empty_caption_file_is_refused(photos, problems_of, text):
    (photos / "a.txt").write_text(text)
    (message,) = problems_of(scan_folder, photos, key=KEY, class_text="photo")
    assert message == f"{photos / 'a.txt'} is empty; write a caption, or take the image out."


def test_class_text_stands_in_for_missing_caption_files_only(photos):
    (photos / "b.txt").unlink()
    records = scan_folder(photos, key=KEY, class_text="a photo")
    assert [record.captions[0] for record in records] == ["a wide photo", "a photo", "a tall photo"]


def test_messages_name_the_option_beside_the_folder(photos, problems_of):
    (photos / "a.txt").unlink()
    (message,) = problems_of(scan_folder, photos, key="data.prior.image_dir")
    assert "set data.prior.caption_extension" in message
    (message,) = problems_of(scan_folder, photos, key="validation.folder")
    assert "set data.caption_extension" in message


def test_caption_that_is_not_utf8_is_refused_with_the_byte(photos, problems_of):
    (photos / "a.txt").write_bytes("caf\xe9".encode("latin-1"))
    (message,) = problems_of(scan_folder, photos, key=KEY)
    assert message == f"{photos / 'a.txt'} is not UTF-8 text (byte 3 is 0xe9); save it as UTF-8."


def test_extension_without_a_dot_is_refused(photos, problems_of):
    assert problems_of(scan_folder, photos, key=KEY, caption_extension="txt") == [
        'data.caption_extension is "txt"; it must start with a dot. Use ".txt".'
    ]


def test_other_caption_extension_is_used(photos):
    for path in photos.rglob("*.txt"):
        path.rename(path.with_suffix(".caption"))
    records = scan_folder(photos, key=KEY, caption_extension=".caption")
    assert records[1].captions == ("a square photo",)


def test_all_problems_are_reported_at_once(photos, problems_of):
    (photos / "a.txt").unlink()
    (photos / "a.jpg").write_bytes((photos / "a.jpg").read_bytes()[:500])
    (photos / "b.txt").write_text("")
    (photos / "nested" / "c.webp").write_bytes(b"")
    messages = problems_of(scan_folder, photos, key=KEY)
    files = [message.split(" ", 1)[0] for message in messages]
    names = ["a.jpg", "a.jpg", "b.txt", "nested/c.webp"]
    assert files == [str(photos / name) for name in names]


def test_every_kind_of_line_end_ends_a_line(photos):
    (photos / "a.txt").write_bytes(b"one\rtwo\r\nthree\nfour")
    assert scan_folder(photos, key=KEY)[0].captions == ("one", "two", "three", "four")


def test_utf16_without_its_mark_is_refused(photos, problems_of):
    (photos / "a.txt").write_bytes("cat".encode("utf-16-le"))  # valid UTF-8 with NUL characters
    (message,) = problems_of(scan_folder, photos, key=KEY)
    assert message == f"{photos / 'a.txt'} is not UTF-8 text (byte 1 is 0x00); save it as UTF-8."


def test_links_to_one_folder_list_its_images_under_every_name(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    elsewhere.mkdir()
    noise_image(32, 32).save(elsewhere / "x.png")
    root.mkdir()
    for name in ("one", "two"):
        (root / name).symlink_to(elsewhere)
    (elsewhere / "up").symlink_to(root)  # a loop: it ends where it began
    records = scan_folder(root, key=KEY, class_text="x")
    assert [record.path.relative_to(root).as_posix() for record in records] == [
        "one/x.png",
        "two/x.png",
    ]


def test_name_that_is_not_utf8_is_refused(photos, problems_of):
    os.rename(photos / "a.jpg", os.fsencode(photos) + b"/b\xff.jpg")
    (message,) = problems_of(scan_folder, photos, key=KEY, class_text="x")
    assert message == (f"{photos}/b\\udcff.jpg has a name that is not UTF-8; rename it.")


def test_link_to_nothing_is_called_so(photos, problems_of):
    (photos / "b.png").unlink()
    (photos / "b.png").symlink_to(photos / "gone.png")
    (message,) = problems_of(scan_folder, photos, key=KEY)
    assert message == (
        f"{photos / 'b.png'} cannot be read (No such file or directory); it links to "
        f"{photos / 'gone.png'}: mend the link or take it out."
    )


def test_pipe_called_like_an_image_is_refused_and_not_waited_for(photos, problems_of):
    os.mkfifo(photos / "pipe.png")
    (message,) = problems_of(scan_folder, photos, key=KEY, class_text="x")
    assert message == f"{photos / 'pipe.png'} is no regular file; replace it or take it out."

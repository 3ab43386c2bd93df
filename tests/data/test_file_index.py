"""The index of files: what counts as unchanged, and that it never says what is not so."""

import json
import os
import shutil

import pytest

from loralab.data.file_index import FileFacts, FileIndex
from loralab.data.images import content_digest
from loralab.data.index import scan_folder
from loralab.errors import DataError
from tests.data.pictures import noise_image


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a.png"
    noise_image(20, 10).save(path)
    return path


@pytest.fixture
def start(tmp_path):
    """Open the index as a new start of the program does."""
    return lambda **options: FileIndex(tmp_path / "cache" / "files.json",
                                       **{"settling_ns": 0, **options})  # fmt: skip


@pytest.fixture
def known(image, start):
    """The image, remembered by an earlier start."""
    index = start()
    index.facts(image)
    index.save()
    return image


def test_facts_are_those_of_the_file(image, start):
    assert start().facts(image) == FileFacts(content_digest(image.read_bytes()), 10, 20)


def test_unchanged_file_is_not_read_again(known, start):
    index = start()
    assert index.facts(known) == FileFacts(content_digest(known.read_bytes()), 10, 20)
    assert index.num_read == 0


def test_touched_file_is_read_again_and_has_the_same_facts(known, start):
    before = start().facts(known)
    os.utime(known)
    index = start()
    assert index.facts(known) == before
    assert index.num_read == 1


def test_file_changed_in_place_with_size_and_time_set_back_is_read_again(tmp_path, start):
    path = tmp_path / "a.bmp"  # the same size whatever it shows
    noise_image(20, 10).save(path)
    index, stat = start(), path.stat()
    before = index.facts(path)
    index.save()
    noise_image(20, 10, seed=1).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    now = path.stat()
    assert (now.st_size, now.st_mtime_ns, now.st_ino) == (
        stat.st_size,
        stat.st_mtime_ns,
        stat.st_ino,
    )
    assert start().facts(path).digest != before.digest


def test_file_replaced_by_another_is_read_again(known, start, tmp_path):
    noise_image(20, 10, seed=1).save(tmp_path / "b.png")
    os.replace(tmp_path / "b.png", known)
    assert start().facts(known).digest == content_digest(known.read_bytes())


def test_file_that_may_still_be_changing_is_not_remembered(image, start):
    index = start(settling_ns=10**15)
    index.facts(image)
    index.save()
    again = start()
    again.facts(image)
    assert again.num_read == 1


def test_file_is_known_by_its_absolute_path(known, start, monkeypatch):
    monkeypatch.chdir(known.parent)
    index = start()
    index.facts(type(known)("a.png"))
    assert index.num_read == 0


def test_damaged_image_is_refused_and_never_remembered(tmp_path, start):
    path = tmp_path / "cut.png"
    noise_image(20, 10).save(path)
    path.write_bytes(path.read_bytes()[:100])
    for _ in range(2):
        index = start()
        with pytest.raises(DataError, match="damaged or incomplete"):
            index.facts(path)
        index.save()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 99, "files": {}}', '{"format": 1, "files": {"a": [1]}}']
)
def test_unusable_index_counts_as_none(known, start, tmp_path, content):
    (tmp_path / "cache" / "files.json").write_text(content)
    index = start()
    index.facts(known)
    index.save()
    assert index.num_read == 1
    assert start().facts(known) is not None


@pytest.mark.parametrize("place", range(5))
def test_a_flipped_bit_is_seen_wherever_it_is(known, start, tmp_path, place):
    path = tmp_path / "cache" / "files.json"
    data = bytearray(path.read_bytes())
    digest = content_digest(known.read_bytes()).encode()
    at = data.index(digest) + place * 10  # in the digest, or in the size behind it
    data[at] ^= 1
    path.write_bytes(data)
    assert start().facts(known) == FileFacts(content_digest(known.read_bytes()), 10, 20)


def test_two_runs_that_save_keep_what_either_found(tmp_path, image, start):
    other = tmp_path / "b.png"
    noise_image(8, 8).save(other)
    one, two = start(), start()
    one.facts(image)
    two.facts(other)
    one.save()
    two.save()
    third = start()
    third.facts(image)
    third.facts(other)
    assert third.num_read == 0
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["files.json"]


def test_folder_that_cannot_be_written_is_no_error(tmp_path, image):
    (tmp_path / "file").write_text("in the way")
    index = FileIndex(tmp_path / "file" / "files.json", settling_ns=0)
    index.facts(image)
    index.save()


def test_without_a_file_nothing_is_remembered(image):
    index = FileIndex(None)
    index.facts(image)
    index.save()
    assert index.num_read == 1


def test_moved_folder_has_the_same_digests(photos, tmp_path, start):
    before = scan_folder(photos, key="data.image_dir")
    shutil.move(photos, tmp_path / "elsewhere")
    after = scan_folder(tmp_path / "elsewhere", key="data.image_dir")
    assert [r.digest for r in before] == [r.digest for r in after]


def test_index_is_plain_json(known, tmp_path):
    content = json.loads((tmp_path / "cache" / "files.json").read_text())
    assert list(content["files"]) == [str(known)]

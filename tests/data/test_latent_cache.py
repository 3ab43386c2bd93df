"""The latent cache: what a key depends on, which files count, what is refused."""

import errno
import os
import re
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from loralab.data import latent_cache, moment_store
from loralab.data.augment import ColorShift, Variant
from loralab.data.buckets import Bucket
from loralab.data.crop import CropPlan, plan_crop
from loralab.data.images import PixelOptions
from loralab.data.latent_cache import LatentCache
from loralab.errors import DataError

PLAN = plan_crop(1800, 1200, Bucket(64, 48))
MOMENTS = torch.arange(8 * 8 * 6, dtype=torch.float32).reshape(8, 8, 6)  # VAE factor 8


@pytest.fixture
def cache(tmp_path):
    return LatentCache(tmp_path / "latents", vae_digest="vae")


@pytest.fixture
def key(cache):
    return cache.key("digest", PLAN)


@pytest.fixture
def stored(cache, key):
    cache.write(key, MOMENTS)
    return cache.store.path(key)


def test_moments_come_back_bit_for_bit(cache, key, stored):
    torch.testing.assert_close(cache.read(key), MOMENTS, rtol=0, atol=0)


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("fp16", 2), ("bf16", 2)])
def test_precision_is_that_of_the_file_and_reading_gives_float32(tmp_path, precision, size):
    cache = LatentCache(tmp_path, vae_digest="vae", precision=precision)
    key = cache.key("digest", PLAN)
    cache.write(key, MOMENTS)
    assert cache.missing([key]) == []
    assert cache.read(key).dtype == torch.float32
    torch.testing.assert_close(cache.read(key), MOMENTS, rtol=0.01, atol=0)
    (file,) = tmp_path.rglob("*.safetensors")
    assert load_file(file)["moments"].itemsize == size


def test_value_beyond_half_precision_is_refused_by_the_name_of_the_image(tmp_path, problems_of):
    cache = LatentCache(tmp_path, vae_digest="vae", precision="fp16")
    (message,) = problems_of(
        cache.write, cache.key("digest", PLAN), MOMENTS + 1e6, source=tmp_path / "cat.jpg"
    )
    assert "cat.jpg is encoded to values that are not finite in fp16;" in message


def test_non_contiguous_moments_are_stored_in_their_own_order(cache, key):
    turned = MOMENTS.transpose(1, 2).contiguous().transpose(1, 2)
    assert not turned.is_contiguous()
    cache.write(key, turned)
    assert torch.equal(cache.read(key), MOMENTS)


def test_file_is_plain_safetensors_in_a_folder_of_two_hex_characters(cache, key, stored):
    assert stored.relative_to(cache.root).as_posix() == f"{key[:2]}/{key}.safetensors"
    assert torch.equal(load_file(stored)["moments"], MOMENTS)


def test_key_does_not_change_between_releases_of_the_same_format(key):
    # Computed once and written down: a change here makes every user's cache stale.
    assert moment_store.FORMAT_VERSION == 3
    assert key == "64f1db3cb50eac81ebaf40984f3ac6baa8ecc154-64x48"


@pytest.mark.parametrize(
    "other",
    [
        {"digest": "other"},
        {"vae_digest": "other"},
        {"vae_dtype": "bf16"},
        {"precision": "fp16"},
        {"variant": Variant(flipped=True)},
        {"variant": Variant(crop=(0.9, 0.9))},
        {"variant": Variant(color=ColorShift(gamma=1.01))},
        {"variant": Variant(color=ColorShift(hue_degrees=1.0))},
        {"pixels": PixelOptions(background="black")},
        {"pixels": PixelOptions(resize_filter="area")},
        {"plan": CropPlan((72, 49), PLAN.top, PLAN.left, PLAN.bucket)},
        {"plan": CropPlan(PLAN.resized, PLAN.top + 1, PLAN.left, PLAN.bucket)},
        {"plan": CropPlan(PLAN.resized, PLAN.top, PLAN.left + 1, PLAN.bucket)},
        {"plan": CropPlan(PLAN.resized, PLAN.top, PLAN.left, Bucket(64, 40))},
    ],
    ids=str,
)
def test_key_changes_with_everything_the_moments_depend_on(tmp_path, key, other):
    facts = {"digest": "digest", "vae_digest": "vae", "vae_dtype": "fp32",
             "precision": "fp32", "plan": PLAN,
             "variant": Variant(), "pixels": PixelOptions(), **other}  # fmt: skip
    cache = LatentCache(
        tmp_path,
        vae_digest=facts["vae_digest"],
        vae_dtype=facts["vae_dtype"],
        precision=facts["precision"],
    )
    changed = cache.key(facts["digest"], facts["plan"], facts["variant"], pixels=facts["pixels"])
    assert changed != key


def test_two_words_for_one_thing_have_one_key(cache, key):
    centre = plan_crop(1800, 1200, Bucket(64, 48))
    assert cache.key("digest", centre, pixels=PixelOptions(background="#ffffff")) == key
    wide = plan_crop(64, 48, Bucket(64, 48))  # nothing hangs over, so no place is another one
    assert cache.key("d", wide, Variant(crop=(0.1, 0.9))) == cache.key("d", wide)


def test_key_changes_with_the_format_version(cache, key, monkeypatch):
    monkeypatch.setattr(latent_cache, "FORMAT_VERSION", 99)
    assert cache.key("digest", PLAN) != key


def test_all_keys_are_missing_before_the_folder_exists(cache, key):
    assert cache.missing([key]) == [key]


def test_missing_keys_come_once_in_the_order_asked(cache, key, stored):
    others = [cache.key(name, PLAN) for name in ("z", "a")]
    assert cache.missing([others[0], key, others[1], others[0]]) == others


def test_file_cut_off_at_any_byte_is_missing(cache, key, stored):
    data = stored.read_bytes()
    for length in [*range(0, len(data), 97), len(data) - 1]:
        stored.write_bytes(data[:length])
        assert cache.missing([key]) == [key], length


@pytest.mark.parametrize("rubbish", [b"", b"\0" * 500, b"\x08\0\0\0\0\0\0\0[1,2,3]]", b"PK" * 900])
def test_file_of_another_kind_is_missing(cache, key, stored, rubbish):
    stored.write_bytes(rubbish)
    assert cache.missing([key]) == [key]


def test_file_with_bytes_appended_is_missing(cache, key, stored):
    stored.write_bytes(stored.read_bytes() + b"\0")
    assert cache.missing([key]) == [key]


def test_file_of_another_key_under_this_name_is_missing(cache, key, stored):
    other = cache.key("other", PLAN)
    cache.store.path(other).parent.mkdir(exist_ok=True)
    cache.store.path(other).write_bytes(stored.read_bytes())
    assert cache.missing([other]) == [other]


@pytest.mark.parametrize(
    "moments", [torch.zeros(8, 6, 8), torch.zeros(7, 8, 6), torch.zeros(8, 48)]
)
def test_file_of_the_wrong_shape_is_missing(cache, key, stored, moments):
    save_file(
        {"moments": moments},
        stored,
        metadata={"key": key, "format": str(moment_store.FORMAT_VERSION), "crc32": "0"},
    )
    assert cache.missing([key]) == [key]


def test_file_of_the_wrong_dtype_is_missing(cache, key, stored):
    save_file(
        {"moments": MOMENTS.double()},
        stored,
        metadata={"key": key, "format": str(moment_store.FORMAT_VERSION), "crc32": "0"},
    )
    assert cache.missing([key]) == [key]


def test_reading_a_file_with_one_changed_bit_is_refused(cache, key, stored, problems_of):
    data = bytearray(stored.read_bytes())
    data[-5] ^= 1
    stored.write_bytes(data)
    assert problems_of(cache.read, key) == [
        f"{stored} is damaged; take all damaged files out with `loralab cache clean "
        f"{stored.parent.parent}` and start the run again to rebuild them."
    ]


def test_reading_a_file_that_is_gone_is_a_sentence(cache, key, problems_of):
    (message,) = problems_of(cache.read, key)
    assert message.startswith(f"{cache.store.path(key)} is gone from the latent cache;")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_value_that_is_not_finite_is_refused_by_the_name_of_the_image(
    cache, key, tmp_path, problems_of, value
):
    moments = MOMENTS.clone()
    moments[3, 2, 1] = value
    (message,) = problems_of(cache.write, key, moments, source=tmp_path / "cat.jpg")
    assert message.startswith(
        f"{tmp_path / 'cat.jpg'} is encoded to values that are not finite in fp32;"
    )
    assert cache.missing([key]) == [key]


def test_moments_of_another_bucket_are_our_own_mistake(cache, key):
    with pytest.raises(AssertionError):
        cache.write(key, torch.zeros(8, 6, 8))


def test_folder_that_cannot_be_made_names_the_option(tmp_path, problems_of):
    (tmp_path / "file").write_text("in the way")
    cache = LatentCache(tmp_path / "file", vae_digest="vae")
    key = cache.key("digest", PLAN)
    for action, arguments in ((cache.write, (key, MOMENTS)), (cache.missing, ([key],))):
        (message,) = problems_of(action, *arguments)
        assert message.startswith(f"data.latent_cache.directory is {tmp_path / 'file'}; ")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_failed_write_names_the_option_and_leaves_nothing_behind(
    cache, key, problems_of, monkeypatch, code
):
    def fail(source, target):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", fail)
    assert problems_of(cache.write, key, MOMENTS) == [
        f"data.latent_cache.directory is {cache.root}; writing there failed ({os.strerror(code)}). "
        "Free space, mend its permissions or name another folder."
    ]
    assert [path.name for path in cache.root.rglob("*") if path.is_file()] == []


def test_failed_rewrite_keeps_the_old_file(cache, key, stored, monkeypatch):
    def fail(source, target):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError):
        cache.write(key, MOMENTS + 1)
    assert torch.equal(cache.read(key), MOMENTS)


def test_damaged_file_can_be_written_again(cache, key, stored):
    stored.write_bytes(b"")
    cache.write(key, MOMENTS)
    assert cache.missing([key]) == []
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]


def test_reader_beside_several_writers_of_one_key_always_sees_a_whole_file(cache, key, stored):
    def write(number):
        for _ in range(25):
            LatentCache(cache.root, vae_digest="vae").write(key, MOMENTS + number)

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, number) for number in range(3)]
        while not all(writer.done() for writer in writers):
            assert cache.missing([key]) == []
            number = (cache.read(key) - MOMENTS).unique()
            assert number.numel() == 1
        assert [writer.result() for writer in writers] == [None] * 3


def test_memory_keeps_moments_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = LatentCache(None, vae_digest="vae")
    key = cache.key("digest", PLAN)
    assert cache.missing([key]) == [key]
    cache.write(key, MOMENTS)
    assert cache.missing([key]) == []
    assert torch.equal(cache.read(key), MOMENTS)
    assert list(tmp_path.iterdir()) == []


def test_folder_is_tagged_for_backups(cache, stored):
    tag = (cache.root / "CACHEDIR.TAG").read_text()
    assert tag.startswith("Signature: 8a477f597d28d172789f06886806bc55\n")  # as the standard says


@pytest.mark.parametrize("name", ["", ".somewhere"])
def test_next_writer_takes_away_what_a_killed_one_left(cache, key, stored, name):
    process = subprocess.Popen(["true"])
    process.wait()  # its number is no longer in use
    host = re.sub(r"[^\w.]", "_", socket.gethostname()) + name
    left = cache.root / "unfinished" / f"{host}-{process.pid}-{'0' * 32}.part"
    left.write_bytes(b"half")
    running = left.with_name(f"{host}-{os.getpid()}-{'0' * 32}.part")
    running.write_bytes(b"half")
    LatentCache(cache.root, vae_digest="vae").write(key, MOMENTS)
    assert left.exists() == bool(name)  # another machine's processes are not ours to judge ...
    assert running.exists()
    os.utime(left.with_name(running.name), (0, 0))
    LatentCache(cache.root, vae_digest="vae").write(key, MOMENTS)
    assert not running.exists()  # ... until a day has gone by


def test_needed_bytes_are_those_of_the_files_to_about_a_percent(cache):
    large = plan_crop(512, 512, Bucket(512, 512))
    keys = [cache.key(str(number), large) for number in range(3)]
    assert cache.bytes_needed([*keys, keys[0]], channels=4, factor=8) == pytest.approx(
        3 * 8 * 64 * 64 * 4, rel=0.01
    )
    cache.write(keys[0], torch.zeros(8, 64, 64))
    needed = cache.bytes_needed(keys, channels=4, factor=8)
    assert needed == pytest.approx(2 * cache.bytes_used(), rel=0.01)


def test_last_use_is_noted_once_a_day(cache, key, stored):
    week_ago = time.time() - 7 * 86400
    os.utime(stored, (week_ago, week_ago))
    cache.missing([key])
    assert time.time() - stored.stat().st_mtime < 60

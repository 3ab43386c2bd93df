"""The latent cache: what a key depends on, which files count, what is refused."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from loralab.data import latent_cache
from loralab.data.buckets import Bucket
from loralab.data.crop import CropPlan, plan_crop
from loralab.data.latent_cache import LatentCache
from loralab.errors import DataError

PLAN = plan_crop(1800, 1200, Bucket(64, 48))
MOMENTS = torch.arange(8 * 8 * 6, dtype=torch.float32).reshape(8, 8, 6)  # VAE factor 8


@pytest.fixture
def cache(tmp_path):
    return LatentCache(tmp_path / "latents", vae_digest="vae")


@pytest.fixture
def key(cache):
    return cache.key("digest", PLAN, flipped=False)


@pytest.fixture
def stored(cache, key):
    cache.write(key, MOMENTS)
    return cache.path(key)


def test_moments_come_back_bit_for_bit(cache, key, stored):
    torch.testing.assert_close(cache.read(key), MOMENTS, rtol=0, atol=0)


def test_half_precision_is_stored_as_float32(cache, key):
    cache.write(key, MOMENTS.to(torch.bfloat16))
    assert cache.read(key).dtype == torch.float32


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
    assert latent_cache.FORMAT_VERSION == 1
    assert key == "311290d244d105388ebbf953be2d3229cdd23f79-64x48"


@pytest.mark.parametrize(
    "other",
    [
        {"digest": "other"},
        {"flipped": True},
        {"vae": "other"},
        {"plan": CropPlan((72, 49), PLAN.top, PLAN.left, PLAN.bucket)},
        {"plan": CropPlan(PLAN.resized, PLAN.top + 1, PLAN.left, PLAN.bucket)},
        {"plan": CropPlan(PLAN.resized, PLAN.top, PLAN.left + 1, PLAN.bucket)},
        {"plan": CropPlan(PLAN.resized, PLAN.top, PLAN.left, Bucket(64, 40))},
    ],
    ids=["content", "flip", "vae", "scale", "top", "left", "bucket"],
)
def test_key_changes_with_everything_the_moments_depend_on(tmp_path, key, other):
    cache = LatentCache(tmp_path, vae_digest=other.get("vae", "vae"))
    arguments = other.get("digest", "digest"), other.get("plan", PLAN)
    assert cache.key(*arguments, flipped=other.get("flipped", False)) != key


def test_key_changes_with_the_format_version(cache, key, monkeypatch):
    monkeypatch.setattr(latent_cache, "FORMAT_VERSION", 2)
    assert cache.key("digest", PLAN, flipped=False) != key


def test_all_keys_are_missing_before_the_folder_exists(cache, key):
    assert cache.missing([key]) == [key]


def test_missing_keys_come_once_in_the_order_asked(cache, key, stored):
    others = [cache.key(name, PLAN, flipped=False) for name in ("z", "a")]
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
    other = cache.key("other", PLAN, flipped=False)
    cache.path(other).parent.mkdir(exist_ok=True)
    cache.path(other).write_bytes(stored.read_bytes())
    assert cache.missing([other]) == [other]


@pytest.mark.parametrize(
    "moments", [torch.zeros(8, 6, 8), torch.zeros(7, 8, 6), torch.zeros(8, 48)]
)
def test_file_of_the_wrong_shape_is_missing(cache, key, stored, moments):
    save_file({"moments": moments}, stored, metadata={"key": key, "crc32": "0"})
    assert cache.missing([key]) == [key]


def test_file_of_the_wrong_dtype_is_missing(cache, key, stored):
    save_file({"moments": MOMENTS.half()}, stored, metadata={"key": key, "crc32": "0"})
    assert cache.missing([key]) == [key]


def test_reading_a_file_with_one_changed_bit_is_refused(cache, key, stored, problems_of):
    data = bytearray(stored.read_bytes())
    data[-5] ^= 1
    stored.write_bytes(data)
    assert problems_of(cache.read, key) == [
        f"{stored} is damaged; delete it and start the run again to rebuild it."
    ]


def test_reading_a_file_that_is_gone_is_a_sentence(cache, key, problems_of):
    (message,) = problems_of(cache.read, key)
    assert message.startswith(f"{cache.path(key)} is gone from the latent cache;")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_value_that_is_not_finite_is_refused_by_the_name_of_the_image(
    cache, key, tmp_path, problems_of, value
):
    moments = MOMENTS.clone()
    moments[3, 2, 1] = value
    (message,) = problems_of(cache.write, key, moments, source=tmp_path / "cat.jpg")
    assert message.startswith(f"{tmp_path / 'cat.jpg'} is encoded to values that are not finite;")
    assert cache.missing([key]) == [key]


def test_moments_of_another_bucket_are_our_own_mistake(cache, key):
    with pytest.raises(AssertionError):
        cache.write(key, torch.zeros(8, 6, 8))


def test_folder_that_cannot_be_made_names_the_option(tmp_path, problems_of):
    (tmp_path / "file").write_text("in the way")
    cache = LatentCache(tmp_path / "file", vae_digest="vae")
    key = cache.key("digest", PLAN, flipped=False)
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
    assert [path for path in cache.root.rglob("*") if path.is_file()] == []


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

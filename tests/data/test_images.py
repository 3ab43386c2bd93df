"""Decoding and cropping; colours are worked out by hand."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from loralab.data.buckets import Bucket
from loralab.data.crop import plan_crop
from loralab.data.images import crop_image, load_image, read_size
from tests.data.pictures import noise_image

ORIENTATION = 0x0112


def pixel(path, at=(0, 0)):
    image = load_image(path)
    assert image.mode == "RGB"
    return image.getpixel(at)


def test_transparent_pixels_become_white_whatever_colour_they_hide(tmp_path):
    path = tmp_path / "clear.png"
    Image.new("RGBA", (4, 4), (200, 10, 10, 0)).save(path)
    assert pixel(path) == (255, 255, 255)


def test_half_transparent_black_over_white_is_grey(tmp_path):
    path = tmp_path / "half.png"
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(path)
    assert pixel(path) == (127, 127, 127)  # 255 * (1 - 128 / 255)


def test_transparent_palette_entry_becomes_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "palette.png", transparency=1)
    assert pixel(tmp_path / "palette.png", (0, 0)) == (255, 0, 0)
    assert pixel(tmp_path / "palette.png", (1, 0)) == (255, 255, 255)


def test_palette_with_partly_transparent_entries_is_read_without_a_warning(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "palette.png", transparency=bytes([128, 255]))
    assert pixel(tmp_path / "palette.png", (0, 0)) == (127, 127, 127)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 200 * 257, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    image = load_image(tmp_path / "deep.png")
    assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 200, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_png_mode_becomes_rgb(tmp_path, mode):
    Image.new(mode, (3, 2)).save(tmp_path / "image.png")
    assert load_image(tmp_path / "image.png").mode == "RGB"


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "print.jpg")
    assert pixel(tmp_path / "print.jpg") == (255, 255, 255)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_exif_rotation_turns_both_size_and_pixels(tmp_path, extension):
    path = tmp_path / f"phone.{extension}"
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))  # left half white
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # shown turned clockwise: the left half comes on top
    image.save(path, exif=exif, **({} if extension == "png" else {"quality": 100}))
    assert read_size(path.read_bytes(), path) == (40, 20)
    shown = load_image(path)
    assert (shown.height, shown.width) == (40, 20)
    assert shown.getpixel((10, 5))[0] > 250
    assert shown.getpixel((10, 35))[0] < 5


@pytest.mark.parametrize("name", ["image.png", "image.jpg", "image.webp", "image.bmp"])
def test_size_from_the_header_equals_that_of_the_pixels(tmp_path, name):
    path = tmp_path / name
    noise_image(37, 53).save(path)
    image = load_image(path)
    assert read_size(path.read_bytes(), path) == (image.height, image.width) == (53, 37)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.webp", "cut.bmp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_file_cut_off_anywhere_is_refused_by_name(tmp_path, problems_of, name, share):
    path = tmp_path / name
    noise_image(64, 64).save(path)
    data = path.read_bytes()
    (message,) = problems_of(read_size, data[: int(share * len(data))], path)
    assert message.startswith(str(path))


def test_cut_off_jpeg_with_a_whole_thumbnail_is_refused(tmp_path, problems_of):
    thumbnail, path = tmp_path / "thumbnail.jpg", tmp_path / "camera.jpg"
    noise_image(16, 16).save(thumbnail)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x927C] = thumbnail.read_bytes()  # a JPEG inside the metadata
    noise_image(64, 64).save(path, exif=exif)
    data = path.read_bytes()
    assert data.count(b"\xff\xd9") == 2
    assert problems_of(read_size, data[:-200], path)


def test_whole_jpeg_with_bytes_after_its_end_is_accepted(tmp_path):
    path = tmp_path / "tail.jpg"
    noise_image(64, 64).save(path)
    assert read_size(path.read_bytes() + b"appended \xff\xda by a camera", path) == (64, 64)


def test_png_with_a_flipped_byte_is_refused(tmp_path, problems_of):
    path = tmp_path / "rot.png"
    noise_image(64, 64).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    (message,) = problems_of(read_size, bytes(data), path)
    assert "damaged or incomplete" in message


def test_decode_error_names_the_file(tmp_path, problems_of):
    path = tmp_path / "cut.jpg"
    noise_image(64, 64).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    (message,) = problems_of(load_image, path)
    assert message.startswith(f"{path} is damaged or incomplete (")


def test_text_named_png_is_called_unreadable(tmp_path, problems_of):
    path = tmp_path / "note.png"
    (message,) = problems_of(read_size, b"not an image", path)
    assert message == (
        f"{path} is not a readable png, jpg, webp or bmp image; replace it or take it out."
    )


def test_animation_is_refused(tmp_path, problems_of):
    path = tmp_path / "moving.webp"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    (message,) = problems_of(read_size, path.read_bytes(), path)
    assert "is an animation" in message


@pytest.mark.filterwarnings("ignore")  # as outside the tests
@pytest.mark.parametrize("limit", [3000, 1000])  # 4096 pixels: a warning, and beyond twice an error
def test_image_beyond_pillows_limit_is_a_sentence(tmp_path, problems_of, monkeypatch, limit):
    path = tmp_path / "huge.png"
    noise_image(64, 64).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    (message,) = problems_of(load_image, path)
    assert message == f"{path} has more than {limit:,} pixels; make it smaller."


def test_warning_filters_are_left_as_they_were(tmp_path):
    path = tmp_path / "image.png"
    noise_image(8, 8).save(path)
    before = list(warnings.filters)
    load_image(path)
    assert warnings.filters == before


def test_missing_file_is_a_sentence(tmp_path, problems_of):
    (message,) = problems_of(load_image, tmp_path / "gone.png")
    assert "gone.png cannot be read (No such file or directory)" in message


def test_pixels_run_from_minus_one_to_one():
    image = Image.new("RGB", (8, 8), (0, 255, 51))
    pixels = crop_image(image, plan_crop(8, 8, Bucket(8, 8)), flipped=False)
    assert pixels.dtype == torch.float32
    assert pixels.shape == (3, 8, 8)
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([-1.0, 1.0, 51 / 127.5 - 1]))


def test_image_of_the_bucket_size_keeps_its_pixels():
    image = noise_image(24, 16)
    pixels = crop_image(image, plan_crop(16, 24, Bucket(16, 24)), flipped=False)
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(pixels, expected)


def test_one_pass_crop_equals_resize_then_crop_by_pillow():
    image = noise_image(96, 60).resize((192, 120), Image.Resampling.BICUBIC)
    plan = plan_crop(120, 192, Bucket(64, 64))  # 64 x 102, left 19
    whole = image.resize((102, 64), Image.Resampling.LANCZOS).crop((19, 0, 83, 64))
    expected = torch.from_numpy(np.array(whole)).permute(2, 0, 1) / 127.5 - 1
    pixels = crop_image(image, plan, flipped=False)
    assert (pixels - expected).abs().max() <= 2.5 / 127.5  # rounding of Pillow's 8-bit passes


def test_flipped_crop_is_the_mirror_image():
    image, plan = noise_image(96, 60), plan_crop(60, 96, Bucket(64, 64))
    mirrored = crop_image(image, plan, flipped=True)
    torch.testing.assert_close(mirrored, crop_image(image, plan, flipped=False).flip(-1))


def test_rounding_never_pushes_the_crop_out_of_the_image():
    assert 25 * (220 / 25) > 220  # the case at hand
    plan = plan_crop(220, 220, Bucket(24, 25))
    assert crop_image(Image.new("RGB", (220, 220)), plan, flipped=False).shape == (3, 24, 25)

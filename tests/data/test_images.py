"""Decoding and cropping; colours are worked out by hand."""

import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from loralab.data.augment import ColorShift, Variant, shift_color
from loralab.data.buckets import Bucket
from loralab.data.crop import plan_crop
from loralab.data.images import area_means, crop_image, load_image, read_size
from tests.data.pictures import noise_image

ORIENTATION = 0x0112


def pixel(path, at=(0, 0), **options):
    image = load_image(path, **options)
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


@pytest.mark.parametrize(
    ("background", "expected"),
    [("white", (255, 127, 127)), ("black", (128, 0, 0)), ("#0000ff", (128, 0, 127))],
)
def test_half_transparent_red_is_mixed_with_the_background(tmp_path, background, expected):
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "half.png")
    assert pixel(tmp_path / "half.png", background=background) == expected


def test_grey_with_alpha_is_composited(tmp_path):
    Image.new("LA", (4, 4), (100, 0)).save(tmp_path / "clear.png")
    assert pixel(tmp_path / "clear.png", background="#102030") == (16, 32, 48)


@pytest.mark.parametrize("name", ["clear.webp", "clear.avif", "clear.tiff"])
def test_alpha_of_other_formats_is_composited(tmp_path, name):
    Image.new("RGBA", (16, 16), (200, 10, 10, 0)).save(tmp_path / name)
    found = pixel(tmp_path / name, background="black")
    assert max(found) <= 2  # AVIF is lossy


@pytest.mark.parametrize("name", ["image.avif", "image.tiff", "image.tif"])
def test_avif_and_tiff_keep_their_colours(tmp_path, name):
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / name)
    found = pixel(tmp_path / name)
    assert all(abs(a - b) <= 3 for a, b in zip(found, (200, 100, 50), strict=True))


def test_sixteen_bit_grey_tiff_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 200 * 257, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.tiff")
    image = load_image(tmp_path / "deep.tiff")
    assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 200, 255]


def test_sixteen_bit_colour_png_is_read_by_its_high_bytes(tmp_path):
    # Pillow writes no such file: one row of two pixels, by the PNG specification.
    row = b"\0" + struct.pack(">6H", 65535, 200 * 256, 0, 0, 257, 128 * 256 + 255)
    header = struct.pack(">2I5B", 2, 1, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    (tmp_path / "deep.png").write_bytes(data)
    assert pixel(tmp_path / "deep.png", (0, 0)) == (255, 200, 0)
    assert pixel(tmp_path / "deep.png", (1, 0)) == (0, 1, 128)


def test_clear_value_of_a_16_bit_grey_png_is_laid_over_the_background(tmp_path):
    # Two pixels, 1000 and 65535; tRNS says that 1000 is clear (PNG specification, 11.3.2.1).
    header = struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 0)
    row = b"\0" + struct.pack(">HH", 1000, 65535)
    chunks = [(b"IHDR", header), (b"tRNS", struct.pack(">H", 1000)),
              (b"IDAT", zlib.compress(row)), (b"IEND", b"")]  # fmt: skip
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    (tmp_path / "clear.png").write_bytes(data)
    image = load_image(tmp_path / "clear.png", background="#ff0000")
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.float32, 100_000), (np.int32, 100_000), (np.int32, -5)]
)
def test_thirty_two_bits_a_channel_are_refused(tmp_path, problems_of, dtype, value):
    path = tmp_path / "deep.tiff"
    Image.fromarray(np.full((4, 4), value, dtype)).save(path)
    assert problems_of(load_image, path) == [f"{path} has 32 bits a channel; save it with 8 or 16."]


def test_palette_and_cmyk_tiff_become_rgb(tmp_path):
    image = Image.new("P", (1, 1))
    image.putpalette([7, 8, 9])
    image.save(tmp_path / "palette.tiff")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.tiff")
    assert pixel(tmp_path / "palette.tiff") == (7, 8, 9)
    assert pixel(tmp_path / "print.tiff") == (255, 0, 0)


def test_tiff_of_several_pages_is_refused(tmp_path, problems_of):
    path = tmp_path / "scan.tiff"
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert problems_of(read_size, path.read_bytes(), path) == [
        f"{path} has several pages; save one picture of it."
    ]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_png_mode_becomes_rgb(tmp_path, mode):
    Image.new(mode, (3, 2)).save(tmp_path / "image.png")
    assert load_image(tmp_path / "image.png").mode == "RGB"


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "print.jpg")
    assert pixel(tmp_path / "print.jpg") == (255, 255, 255)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "avif", "tiff"])
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


@pytest.mark.parametrize(
    "name", ["image.png", "image.jpg", "image.webp", "image.bmp", "image.avif", "image.tiff"]
)
def test_size_from_the_header_equals_that_of_the_pixels(tmp_path, name):
    path = tmp_path / name
    noise_image(37, 53).save(path)
    image = load_image(path)
    assert read_size(path.read_bytes(), path) == (image.height, image.width) == (53, 37)


@pytest.mark.parametrize(
    "name", ["cut.png", "cut.jpg", "cut.webp", "cut.bmp", "cut.avif", "cut.tiff"]
)
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
        f"{path} is not a readable png, jpg, webp, bmp, avif or tiff image; replace it or take it "
        "out."
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
    pixels = crop_image(image, plan_crop(8, 8, Bucket(8, 8)))
    assert pixels.dtype == torch.float32
    assert pixels.shape == (3, 8, 8)
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([-1.0, 1.0, 51 / 127.5 - 1]))


def test_image_of_the_bucket_size_keeps_its_pixels():
    image = noise_image(24, 16)
    pixels = crop_image(image, plan_crop(16, 24, Bucket(16, 24)))
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(pixels, expected)


def test_one_pass_crop_equals_resize_then_crop_by_pillow():
    image = noise_image(96, 60).resize((192, 120), Image.Resampling.BICUBIC)
    plan = plan_crop(120, 192, Bucket(64, 64))  # 64 x 102, left 19
    whole = image.resize((102, 64), Image.Resampling.LANCZOS).crop((19, 0, 83, 64))
    expected = torch.from_numpy(np.array(whole)).permute(2, 0, 1) / 127.5 - 1
    pixels = crop_image(image, plan)
    assert (pixels - expected).abs().max() <= 2.5 / 127.5  # rounding of Pillow's 8-bit passes


def test_flipped_crop_is_the_mirror_image():
    image, plan = noise_image(96, 60), plan_crop(60, 96, Bucket(64, 64))
    mirrored = crop_image(image, plan, Variant(flipped=True))
    torch.testing.assert_close(mirrored, crop_image(image, plan).flip(-1))


def test_rounding_never_pushes_the_crop_out_of_the_image():
    assert 25 * (220 / 25) > 220  # the case at hand
    plan = plan_crop(220, 220, Bucket(24, 25))
    assert crop_image(Image.new("RGB", (220, 220)), plan).shape == (3, 24, 25)


AREA = np.array([[10, 20, 60, 80, 120], [0, 200, 30, 90, 250], [255, 5, 17, 33, 99]], np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((2, 2), [[45, 109], [100, 85]]), ((2, 3), [[36, 63, 131], [130, 37, 110]])],
)
def test_area_means_are_those_of_opencv(size, expected):
    # cv2.resize(..., interpolation=cv2.INTER_AREA) of OpenCV 5.0.0, written down.
    found = area_means(AREA[..., None], (0, 0, 5, 3), size)[..., 0]
    assert np.rint(found).astype(int).tolist() == expected


def test_area_means_of_a_part_count_border_pixels_by_their_share():
    # From 0.5 to 3.5: half of 10, then 20 | 60, then half of 80; each mean over 1.5 pixels.
    found = area_means(AREA[:1, :, None], (0.5, 0, 3.5, 1), (1, 2))[0, :, 0]
    np.testing.assert_allclose(found, [(5 + 20) / 1.5, (60 + 40) / 1.5], rtol=1e-6)


def test_area_filter_halves_by_means_and_lanczos_does_not():
    image = Image.fromarray(np.array([[0, 100, 200, 250]] * 4, np.uint8)).convert("RGB")
    plan = plan_crop(4, 4, Bucket(2, 2))
    values = ((crop_image(image, plan, resize_filter="area") + 1) * 127.5)[0, 0]
    torch.testing.assert_close(values, torch.tensor([50.0, 225.0]))
    assert not torch.equal(crop_image(image, plan), crop_image(image, plan, resize_filter="area"))


def test_area_filter_leaves_enlarging_to_lanczos():
    image, plan = noise_image(20, 20), plan_crop(20, 20, Bucket(32, 32))
    assert torch.equal(crop_image(image, plan), crop_image(image, plan, resize_filter="area"))


def test_color_of_a_variant_comes_after_the_crop():
    image, plan = noise_image(96, 60), plan_crop(60, 96, Bucket(64, 64))
    shift = ColorShift(hue_degrees=10.0)
    expected = shift_color(crop_image(image, plan), shift)
    assert torch.equal(crop_image(image, plan, Variant(color=shift)), expected)

"""Pictures from files that may be anything."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from actfer_jax.faces.images import MAX_BYTES, ImageError, decode_image, load_image

RGB = np.random.default_rng(0).integers(0, 256, (24, 40, 3)).astype(np.uint8)


def encode(picture, format="PNG", **options):
    buffer = io.BytesIO()
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def png(width, height, bits, color_type, rows, chunks=b""):
    """A PNG file from raw rows, written by hand so that it can be one that no library would write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_as_they_were(format):
    np.testing.assert_array_equal(decode_image(encode(RGB, format), "x"), RGB)


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, RGB),
        (2, RGB[:, ::-1]),
        (3, RGB[::-1, ::-1]),
        (4, RGB[::-1]),
        (5, RGB.transpose(1, 0, 2)),
        (6, np.rot90(RGB, 1)),
        (7, RGB[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(RGB, -1)),
    ],
)
def test_exif_orientation_is_applied(orientation, stored):
    data = encode(np.ascontiguousarray(stored), exif=exif(orientation))
    np.testing.assert_array_equal(decode_image(data, "x"), RGB)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "damage", [b"garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_damaged_exif_does_not_lose_the_picture(damage):
    np.testing.assert_array_equal(decode_image(encode(RGB, exif=damage), "x"), RGB)


def test_grey_is_repeated():
    grey = RGB[..., 0]
    np.testing.assert_array_equal(decode_image(encode(grey), "x"), np.stack([grey] * 3, -1))


def test_one_bit_pictures_are_black_and_white():
    bits = RGB[..., 0] > 127
    expected = np.stack([np.where(bits, 255, 0)] * 3, -1)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(bits)), "x"), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode):
    picture = Image.fromarray(np.dstack([RGB, RGB[..., 1]])).convert(mode)
    value = np.asarray(picture.convert("RGBA")).astype(float)
    alpha = value[..., 3:] / 255
    expected = value[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(decode_image(encode(picture), "x") - expected).max() <= 1


def test_palette_pictures():
    picture = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(decode_image(encode(picture), "x"), np.asarray(picture.convert("RGB")))


def test_a_transparent_palette_colour_is_white():
    picture = Image.fromarray(RGB).quantize(16)
    index = np.asarray(picture)
    expected = np.asarray(picture.convert("RGB")).copy()
    expected[index == 3] = 255
    np.testing.assert_array_equal(decode_image(encode(picture, transparency=3), "x"), expected)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    for data in (encode(values), encode(values, "TIFF"), png(5, 1, 16, 0, b"\0" + values.astype(">u2").tobytes())):
        assert decode_image(data, "x")[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_sixteen_bit_colour():
    values = np.array([[[0, 256 * 100, 65535], [256 * 7, 256 * 8, 256 * 9]]], np.uint16)
    image = decode_image(png(2, 1, 16, 2, b"\0" + values.astype(">u2").tobytes()), "x")
    assert image.tolist() == [[[0, 100, 255], [7, 8, 9]]]


def test_cmyk_jpeg_is_read_as_rgb():
    flat = np.full((16, 16, 3), (200, 60, 30), np.uint8)
    image = decode_image(encode(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=100), "x")
    assert image.shape == (16, 16, 3) and np.abs(image.astype(int) - flat).max() < 8


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(format):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)
    np.testing.assert_array_equal(decode_image(data, "x"), np.full((8, 8, 3), (255, 0, 0)))


def test_one_pixel_is_a_picture():
    assert decode_image(encode(RGB[:1, :1]), "x").shape == (1, 1, 3)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_truncated_files_are_refused_by_name(format):
    data = encode(RGB, format)
    for keep in (0, 1, 10, len(data) // 2, len(data) - 60):
        with pytest.raises(ImageError, match="holiday.png"):
            decode_image(data[:keep], "holiday.png")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello, I am a text file\n" * 10,
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        b"%PDF-1.4\n",
        bytes(1000),
    ],
)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(ImageError, match="strange.bin: not a picture"):
        decode_image(data, "strange.bin")


def test_thirty_thousand_pixels_wide_is_refused_with_the_remedy():
    with pytest.raises(ImageError, match=r"wide.png: .*30000x2.*at most 20000 pixels"):
        decode_image(encode(np.zeros((2, 30000, 3), np.uint8)), "wide.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 12_000, 19_000, 60_000])
def test_decompression_bombs_are_refused_from_their_header(side):
    # The rows are never there: a reader that decoded first would say that the file is cut short.
    with pytest.raises(ImageError, match="bomb.png: the picture is too large"):
        decode_image(png(side, side, 8, 2, b""), "bomb.png")


def test_a_bomb_of_metadata_is_refused():
    text = b"Comment\0\0" + zlib.compress(bytes(2**27))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    with pytest.raises(ImageError, match="bomb.png"):
        decode_image(png(1, 1, 8, 2, b"\0\1\2\3", chunks=chunk), "bomb.png")


def test_floating_point_pixels_are_refused():
    with pytest.raises(ImageError, match="float.tiff.*floating-point"):
        decode_image(encode(np.zeros((4, 4), np.float32), "TIFF"), "float.tiff")


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(
    format=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF"]),
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_bytes_give_a_picture_or_an_image_error(format, damage):
    data = bytearray(encode(RGB, format))
    for position, value in damage:
        data[position % len(data)] = value
    try:
        image = decode_image(bytes(data), "x")
    except ImageError as error:
        assert str(error).startswith("x: ")
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def test_load_image_reads_a_file(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encode(RGB))
    np.testing.assert_array_equal(load_image(path), RGB)
    np.testing.assert_array_equal(load_image(str(path)), RGB)


def test_load_image_names_what_is_not_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for path in (tmp_path / "missing.png", tmp_path, pipe, huge):
        with pytest.raises(ImageError, match=str(path)):
            load_image(path)
    with pytest.raises(ImageError, match="not a file name|no such file"):
        load_image("a\0b")
    with pytest.raises(ImageError, match="cannot be read|no such file"):
        load_image("x" * 5000)

"""Pictures from files that may be anything."""

import io
import os
import struct
import zlib
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from actfer_jax.agent.episode import Reference
from actfer_jax.agent.parser import ToolCall
from actfer_jax.data.sources import Sample
from actfer_jax.faces.images import MAX_BYTES, ImageError, check_image, decode_image, load_image
from actfer_jax.faces.store import FaceStore
from actfer_jax.faces.views import cut
from actfer_jax.rollout.engine import Query

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


SMOOTH = np.array(Image.fromarray(RGB).resize((72, 48), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("format", ["HEIF", "AVIF"])
@pytest.mark.parametrize("orientation", [1, 6, 8])
@pytest.mark.parametrize("as_telephones_do", [True, False])
def test_pictures_of_telephones_are_those_that_were_saved_upright(format, orientation, as_telephones_do):
    """Telephones turn a HEIC in its container and repeat that in EXIF; other programs only write EXIF."""
    stored = np.ascontiguousarray(np.rot90(SMOOTH, {1: 0, 6: 1, 8: -1}[orientation]))
    tag = exif(orientation)
    data = encode(stored, format, exif=tag.tobytes() if as_telephones_do else tag, quality=98, subsampling="4:4:4")
    if format == "HEIF":
        assert (b"irot" in data) == (as_telephones_do and orientation != 1)
    image = decode_image(data, "x")
    assert image.shape == SMOOTH.shape
    assert np.abs(image.astype(int) - SMOOTH).mean() < 3


@pytest.mark.parametrize("format", ["HEIF", "AVIF"])
def test_a_large_picture_is_refused_before_it_is_decoded(format, monkeypatch):
    data = encode(SMOOTH, format)
    monkeypatch.setattr("actfer_jax.faces.images.MAX_PIXELS", 48 * 72 - 1)
    monkeypatch.setattr(type(Image.open(io.BytesIO(data))), "load", None)
    with pytest.raises(ImageError, match=r"holiday.heic: the picture is too large \(72x48\)"):
        decode_image(data, "holiday.heic")


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


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF", "HEIF", "TIFF", "BMP"])
def test_truncated_files_are_refused_by_name(format):
    data = encode(RGB, format)
    for keep in (0, 1, 10, len(data) // 2, len(data) - 60):
        with pytest.raises(ImageError, match="holiday.png"):
            decode_image(data[:keep], "holiday.png")


def iso(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0" + brand + bytes(100)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (iso(b"heic"), "looks like a HEIC picture, but is damaged"),
        (iso(b"mif1"), "looks like a HEIC picture, but is damaged"),
        (iso(b"avif"), "looks like an AVIF picture, but is damaged"),
        (iso(b"crx "), "a RAW picture; export it as JPEG"),
        (iso(b"isom"), "a video; save single frames"),
        (b"RIFF\0\0\0\0AVI LIST", "a video; save single frames"),
        (b"FUJIFILMCCD-RAW 0201", "a RAW picture; export it as JPEG"),
        (b"\xff\x0a\x00\x10", "a JPEG XL picture; save it as JPEG"),
        (b"%PDF-1.4\n", "a PDF document; take the picture out"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "a PostScript document; save it as JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "an SVG drawing; save it as JPEG"),
        (b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>", "an SVG drawing; save it as JPEG"),
        (
            b"\n<!DOCTYPE html><html><title>404</title></html>",
            "a web page that was saved under this name; get the file",
        ),
        ("{'fehler': 'größer'}".encode() * 200, "a text, not a picture; get the file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "a pointer of Git LFS.*git lfs pull",
        ),
        (b"/annex/objects/SHA256E-s31390--f50d.jpg\n", "a pointer of git-annex.*git annex get"),
        (b"\x93NUMPY\x01\0v\0{'descr': '|u1'}", "a NumPy array; save it with PIL"),
        (b"PK\x03\x04\x14\0", "a ZIP archive or an office document; unpack it"),
        (bytes(128) + b"DICM", "a DICOM picture; save it as JPEG"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "looks like a JPEG picture, but is damaged"),
        (encode(RGB, "WEBP")[:20], "looks like a WebP picture, but is damaged"),
        (encode(RGB, "JPEG")[:700], "looks like a JPEG picture, but is damaged"),
        (b"", "an empty file; get the file anew"),
        (bytes(1000), "nothing but zeros; get the file anew"),
        (b"\x02\xd3\xee" * 50, "not a picture; give one of JPEG, PNG"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(data, words):
    with pytest.raises(ImageError, match=f"^strange.jpg: {words}"):
        decode_image(data, "strange.jpg")


@pytest.mark.parametrize("tag", [(254, 1), (50706, bytes([1, 4, 0, 0]))])
def test_of_a_raw_picture_not_the_thumbnail_is_read(tag):
    """A camera's RAW file is a TIFF that begins with a small picture (or names the version of DNG that it follows)."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[tag[0]] = tag[1]
    with pytest.raises(ImageError, match="x.nef: a RAW picture; export it"):
        decode_image(encode(RGB, "TIFF", tiffinfo=tags), "x.nef")


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


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_a_picture_of_fewer_bits_than_its_type_is_as_bright_as_it_was(bits, caplog):
    """What a 12-bit camera gives in a 16-bit file is the picture, not a nearly black one."""
    values = np.rint(RGB[..., 0] / 255 * (2**bits - 1)).astype(np.uint16)
    for format in ("PNG", "TIFF"):
        image = decode_image(encode(values, format), "lab.png")
        np.testing.assert_array_equal(image, np.stack([RGB[..., 0]] * 3, -1))
    assert f"lab.png: its values go up to {values.max()} of 65535; they are read as {bits} bits" in caplog.text


def test_dark_colours_of_sixteen_bits_are_explained():
    values = np.rint(RGB / 255 * 4095).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    with pytest.raises(ImageError, match="lab.png: its values fill only a small part of 16 bits.*save it with 8 bits"):
        decode_image(png(40, 24, 16, 2, rows), "lab.png")


def test_floating_point_pixels_from_0_to_1_are_scaled_and_others_explained():
    fractions = RGB[..., 0].astype(np.float32) / 255
    image = decode_image(encode(fractions, "TIFF"), "float.tiff")
    np.testing.assert_array_equal(image, np.stack([RGB[..., 0]] * 3, -1))
    for wrong in (fractions * 3, fractions - 0.5, fractions * np.nan):
        with pytest.raises(ImageError, match="float.tiff: floating-point values from .*with values from 0 to 1"):
            decode_image(encode(wrong, "TIFF"), "float.tiff")


# The door of the functions that take a picture as an array.


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (RGB / 255, r"not float64 \[24, 40, 3\].*\(image \* 255\).round\(\).astype\(np.uint8\)"),
        (RGB.astype(np.int64), r"not int64 .*bring its values to 0 to 255"),
        (RGB > 9, r"not bool .*image.astype\(np.uint8\) \* 255"),
        (RGB[..., 0], r"not uint8 \[24, 40\].*np.stack\(\[image\] \* 3, axis=-1\)"),
        (RGB[..., :1], r"np.repeat\(image, 3, axis=2\)"),
        (np.dstack([RGB, RGB[..., 0]]), r"image\[..., :3\]"),
        (RGB.transpose(2, 0, 1), r"image.transpose\(1, 2, 0\)"),
        (RGB[None], "one by one"),
        (RGB[:0], "empty"),
        (np.zeros(9, np.uint8), "three axes"),
        (Image.fromarray(RGB), r"np.asarray\(image.convert\('RGB'\)\)"),
        ("portrait.jpg", "load_image"),
        ([[[0, 0, 0]]], r"not list; give np.asarray"),
        (None, "not NoneType"),
    ],
)
def test_an_array_that_is_no_picture_is_refused_with_what_to_do(image, words):
    with pytest.raises(ImageError, match=words):
        check_image(image)


def test_what_is_said_to_do_makes_a_picture():
    fractions, grey, alpha, first = RGB / 255, RGB[..., 0], np.dstack([RGB, RGB[..., 0]]), RGB.transpose(2, 0, 1)
    for image in (fractions, grey, alpha, first, RGB[..., :1], RGB > 9):
        with pytest.raises(ImageError) as refused:
            check_image(image)
        remedy = str(refused.value).rpartition("; ")[2].rpartition(": ")[2].removeprefix("if its values are 0 to 1, ")
        check_image(eval(remedy.removeprefix("give "), {"np": np, "image": image}))


def test_every_function_that_takes_a_picture_checks_it(agent, tmp_path):
    toolbox, reference = agent.toolbox, Reference(labels=("fear",), emotion="fear")
    doors = [
        toolbox.detector.detect,
        lambda image: FaceStore(tmp_path / "faces.sqlite").detect(toolbox.detector, image),
        toolbox.scene,
        partial(toolbox.scene, seen=False),
        lambda image: toolbox.faces("key", image),
        lambda image: toolbox.execute(ToolCall("detect_faces", {}), "", images=[image], key="key", views=()),
        lambda image: cut(image, np.eye(2, 3), (8, 8)),
        agent.encoder,
        lambda image: Query("mine", "picture", (image,), reference),
        lambda image: Sample("mine", "picture", (image,), reference),
    ]
    for door in doors:
        for image in (RGB / 255, RGB[..., 0], RGB.transpose(2, 0, 1), RGB[:0], Image.fromarray(RGB)):
            with pytest.raises(ValueError, match="an image is "):
                door(image)


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

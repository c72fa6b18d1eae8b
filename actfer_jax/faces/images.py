"""Reading pictures from files that may be anything."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 64_000_000
MAX_SIDE = 20_000

# Only raster formats that Pillow decodes itself: some others start a program or fetch parts from elsewhere.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


class ImageError(ValueError):
    """A picture cannot be used; the message names it and says what to do."""


def load_image(path: str | Path) -> NDArray[np.uint8]:
    """Reads a picture file as `decode_image` does.

    Returns:
      uint8 [H, W, 3], RGB.

    Raises:
      ImageError: there is no such file, it cannot be read, or it is not a picture within the limits.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ImageError(f"{path}: no such file; give the path of a picture")
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(f"{path}: larger than {MAX_BYTES // 2**20} MiB; save the picture smaller")
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{str(path)!r}: not a file name; give the path of a picture") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decodes a picture to upright 8-bit RGB.

    EXIF orientation is applied, where it can be read; grey, palette and CMYK pictures become RGB; 16-bit grey is
    scaled to 8 bits; transparency is laid on white; of an animation the first frame counts.

    Args:
      data: the contents of a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM file.
      name: what the errors call it.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ImageError: not such a picture, damaged, or beyond `MAX_PIXELS` or `MAX_SIDE`.
    """
    try:
        picture: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(_too_large(name)) from error
    # A damaged file makes the decoders raise nearly anything: OSError, SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        raise ImageError(f"{name}: not a picture; give one of {', '.join(_FORMATS)}") from error
    width, height = picture.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ImageError(_too_large(name, f" ({width}x{height})"))
    try:
        picture.load()
        return np.ascontiguousarray(_to_rgb(_upright(picture)))
    except Exception as error:
        raise ImageError(f"{name}: damaged, cut short or of an odd kind ({error}); save the picture anew") from error


def _too_large(name: str, size: str = "") -> str:
    return (
        f"{name}: the picture is too large{size}; save it with sides of at most {MAX_SIDE} pixels "
        f"and at most {MAX_PIXELS // 10**6} megapixels"
    )


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    # Whatever damaged metadata raises, the pixels are there and say more.
    except Exception:
        return picture


def _to_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    if picture.mode.startswith("I"):
        # Pillow would clip 16-bit values at 255 instead of scaling them.
        grey = np.rint(np.clip(np.asarray(picture, np.float32), 0, 65535) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.asarray(picture.convert("RGB"))

"""Reading images from arbitrary files."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from actfer_jax.errors import UserError
from actfer_jax.faces import formats

log = logging.getLogger(__name__)

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 64_000_000
MAX_SIDE = 20_000

pillow_heif.register_heif_opener()

_SUBFILE_TYPE, _DNG_VERSION = 254, 50706  # Tags of TIFF files.


class ImageError(UserError, ValueError):
    """An image cannot be used; the message names it and says what to do."""


def load_image(path: str | Path) -> NDArray[np.uint8]:
    """Reads an image file as `decode_image` does.

    Returns:
      uint8 [H, W, 3], RGB.

    Raises:
      ImageError: the file does not exist, cannot be read, or is not an image within the limits.
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
    """Decodes an image to upright 8-bit RGB.

    EXIF orientation is applied if it can be read. Grey, palette and CMYK images become RGB. 16-bit grey is scaled to 8
    bits, from the 8, 10, 12, 14 or 16 bits that its values need; floating-point grey is scaled from 0..1. Transparency
    becomes white. Of an animation the first frame is taken.

    Args:
      data: the contents of a JPEG, PNG, WebP, AVIF, HEIC, BMP, GIF, TIFF or PPM file.
      name: the name in error messages.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ImageError: the data is no such image, is damaged, has values without a known range, or exceeds `MAX_PIXELS` or
        `MAX_SIDE`.
    """
    try:
        picture: Image.Image = Image.open(io.BytesIO(data), formats=formats.READ)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(_too_large(name)) from error
    # A damaged file makes the decoders raise nearly anything: OSError, SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        raise ImageError(f"{name}: {formats.describe(data)}") from error
    if picture.format == "TIFF" and _is_raw(data, picture):
        raise ImageError(f"{name}: a RAW picture; {formats.DEVELOP}")
    width, height = picture.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ImageError(_too_large(name, f" ({width}x{height})"))
    try:
        sixteen = any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))
        picture.load()
        rgb = np.ascontiguousarray(_to_rgb(_upright(picture, data), name))
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{name}: {formats.damaged(str(picture.format), error)}") from error
    # Pillow keeps the upper 8 of 16 bits a channel.
    if sixteen and picture.mode in ("RGB", "RGBA") and 0 < rgb.max() < 16:
        raise ImageError(
            f"{name}: its values fill only a small part of 16 bits, so that it is nearly black; save it with 8 bits a "
            "channel"
        )
    return rgb


def _is_raw(data: bytes, picture: Image.Image) -> bool:
    """Whether a TIFF file is a camera's RAW image; Pillow would decode its thumbnail."""
    tags = getattr(picture, "tag_v2", {})
    return data[8:10] == b"CR" or _DNG_VERSION in tags or tags.get(_SUBFILE_TYPE) == 1


def check_image(image: Any) -> None:
    """Checks that a value is an image as this package takes them: an array uint8 [H, W, 3], RGB.

    Raises:
      ImageError: it is not; the message says what it is and how to convert it.
    """
    if isinstance(image, str | bytes | Path):
        raise ImageError(f"an image is a NumPy array, not a {type(image).__name__}; read the file with load_image")
    if isinstance(image, Image.Image):
        raise ImageError("an image is a NumPy array, not a PIL image; give np.asarray(image.convert('RGB'))")
    if not isinstance(image, np.ndarray):
        raise ImageError(f"an image is a NumPy array, not {type(image).__name__}; give np.asarray(image)")
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return
    raise ImageError(f"an image is uint8 [height, width, 3], not {image.dtype} {list(image.shape)}; {_remedy(image)}")


def _remedy(image: NDArray[Any]) -> str:
    """The first thing to do with an array that is not an image."""
    if not image.size:
        return "it is empty: give one with pixels"
    if image.ndim == 4:
        return "give the images of a batch one by one"
    if image.ndim == 2:
        return "make three channels of grey: np.stack([image] * 3, axis=-1)"
    if image.ndim != 3:
        return "give an array with three axes"
    if image.shape[2] == 1:
        return "make three channels of grey: np.repeat(image, 3, axis=2)"
    if image.shape[2] == 4:
        return "leave transparency out: image[..., :3]"
    if image.shape[2] != 3:
        if image.shape[0] in (1, 3, 4):
            return "put the channels last: image.transpose(1, 2, 0)"
        return "give three channels, red, green and blue"
    if image.dtype.kind == "f":
        return "if its values are 0 to 1, give (image * 255).round().astype(np.uint8)"
    if image.dtype == bool:
        return "give image.astype(np.uint8) * 255"
    return "bring its values to 0 to 255, then .astype(np.uint8)"


def _too_large(name: str, size: str = "") -> str:
    return (
        f"{name}: the picture is too large{size}; save it with sides of at most {MAX_SIDE} pixels "
        f"and at most {MAX_PIXELS // 10**6} megapixels"
    )


def _upright(picture: Image.Image, data: bytes) -> Image.Image:
    try:
        # HEIC says itself how it is turned, and comes so from its decoder. Where it does not, EXIF counts.
        if picture.format == "HEIF" and b"irot" not in data and b"imir" not in data:
            picture.getexif()[ExifTags.Base.Orientation] = picture.info.get("original_orientation") or 1
        return ImageOps.exif_transpose(picture)
    # Damaged metadata can raise anything. The pixels matter more.
    except Exception:
        return picture


def _to_rgb(picture: Image.Image, name: str) -> NDArray[np.uint8]:
    if picture.mode.startswith("I") or picture.mode == "F":
        # Pillow would clip such values at 255 instead of scaling them.
        values = np.asarray(picture, np.float64)
        grey = np.rint(values * (255 / _white(values, picture, name))).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.asarray(picture.convert("RGB"))


def _white(values: NDArray[np.float64], picture: Image.Image, name: str) -> float:
    """The value of white in an image of integers of more than 8 bits, or of floating-point numbers.

    Cameras and scanners store 10, 12 or 14 bits in 16-bit integers. Without scaling such an image is nearly black.
    """
    low, high = float(values.min()), float(values.max())
    if picture.mode == "F":
        if low >= 0 and high <= 1:
            return 1.0
        raise ImageError(
            f"{name}: floating-point values from {low:.4g} to {high:.4g}, whose black and white are not known; save it "
            "with 8 bits a channel, or with values from 0 to 1"
        )
    if low < 0:
        raise ImageError(f"{name}: values from {low:.0f} on, whose black is not known; save it with 8 bits a channel")
    bits = next((bits for bits in (8, 10, 12, 14, 16) if high < 2**bits), None)
    if bits is None:
        raise ImageError(f"{name}: values up to {high:.0f}, whose white is not known; save it with 8 bits a channel")
    if bits < 16:
        log.warning("%s: its values go up to %d of 65535; they are read as %d bits", name, high, bits)
    return float(2**bits - 1)

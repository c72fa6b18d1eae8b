"""Finds copies of pictures: the same bytes, or the same picture resized, recompressed or slightly cropped.

A perceptual hash of 64 bits (pHash: the signs of the lowest frequencies of a cosine transform, about their median)
finds candidates; a picture has one for each crop that a copy may have. Aligned faces of one person with another
expression can have the same hash, so that a candidate is then laid over the picture, and must be the same everywhere.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

TOLERANCE = 6
"""Most bits in which the hashes of copies differ; their number is even, as half of the bits of a hash are set."""
CROPS = (0.0, 0.02, 0.04)
"""Shares of the sides that are cut off at each edge before a picture is hashed."""
_CANDIDATES = 10  # Most pictures of similar hash that are laid over one.
_SIDE = 32  # Of the thumbnail, in pixels.
_FLAT = 3.0  # Grey levels of standard deviation below which a thumbnail shows nothing.
_SAME = 0.1  # The largest difference of a block of two thumbnails of one picture, in standard deviations.
_MOST_MOVED = 0.1 * _SIDE  # Pixels by which an edge is moved to lay one over the other.
_STEPS = 6
_BLOCK = 4
_EDGE = 2  # Pixels that depend on what lies beyond the edge.

_COSINES = np.cos(np.pi / _SIDE * np.arange(8)[:, None] * (np.arange(_SIDE) + 0.5))
_ROWS, _COLUMNS = np.mgrid[:_SIDE, :_SIDE].astype(float)
_Y, _X = (2 * places / (_SIDE - 1) - 1 for places in (_ROWS, _COLUMNS))  # -1 to 1 from edge to edge.
_INNER = np.maximum(abs(_Y), abs(_X)) <= 1 - 2 * _EDGE / (_SIDE - 1) + 1e-9

_BITS, _BANDS = 16, 4
# Two hashes that differ in at most 7 bits differ in at most 1 bit of one of their 4 bands.
_FLIPS = np.array([0, *(1 << bit for bit in range(_BITS))], np.uint16)


class Signature(NamedTuple):
    """What a picture is known by.

    Attributes:
      digest: SHA-256 of the file's bytes.
      hashes: of each of `CROPS`; none where the picture shows nothing, and so is like every other such.
      thumbnail: uint8 [32, 32], grey.
    """

    digest: bytes
    hashes: tuple[int, ...]
    thumbnail: NDArray[np.uint8]


def signature(data: bytes, image: NDArray[np.uint8]) -> Signature:
    """The signature of a picture file with these bytes and pixels, uint8 [H, W, 3]."""
    picture = Image.fromarray(image).convert("L")
    thumbnails = [_thumbnail(picture, crop) for crop in CROPS]
    hashes = tuple(map(perceptual_hash, thumbnails)) if thumbnails[0].std() >= _FLAT else ()
    return Signature(hashlib.sha256(data).digest(), hashes, thumbnails[0])


def _thumbnail(picture: Image.Image, crop: float) -> NDArray[np.uint8]:
    width, height = picture.size
    box = (crop * width, crop * height, (1 - crop) * width, (1 - crop) * height)
    return np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box, reducing_gap=3.0))


def perceptual_hash(thumbnail: NDArray[np.uint8]) -> int:
    """pHash of a grey thumbnail [32, 32], in 64 bits."""
    frequencies = (_COSINES @ thumbnail @ _COSINES.T).ravel()
    return int.from_bytes(np.packbits(frequencies > np.median(frequencies)).tobytes(), "big")


def is_same(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether two thumbnails [32, 32] are of one picture, perhaps cropped."""
    whole, cropped = _blurred(one), _blurred(other)
    difference = _difference(whole, cropped)
    if _SAME < difference <= 2 * _SAME:
        # It is a little larger where the crop is stretched, and which of them is the crop is not known.
        difference = min(difference, _difference(cropped, whole))
    return difference <= _SAME


def _blurred(thumbnail: NDArray[np.uint8]) -> NDArray[np.float64]:
    return ndimage.gaussian_filter(thumbnail.astype(float), 1.0)


def _difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Stretches and moves one picture until it fits the other best (Gauss-Newton steps, as Lucas and Kanade's).

    Returns:
      The largest root mean square difference of a block that is left, in standard deviations.
    """
    slope_y, slope_x = np.gradient(other)
    # How a pixel changes with the stretch and the shift along each axis, with contrast and with brightness.
    changes = np.stack([slope_y * _Y, slope_x * _X, slope_y, slope_x, other, np.ones_like(other)], axis=-1)
    place, moved, inside = np.zeros(4), one, _INNER
    for step in range(_STEPS + 1):
        rows, columns = _ROWS + place[0] * _Y + place[2], _COLUMNS + place[1] * _X + place[3]
        moved = ndimage.map_coordinates(one, [rows, columns], order=1 if step < _STEPS else 3, mode="nearest")
        inside = _INNER & (np.minimum(rows, columns) >= _EDGE) & (np.maximum(rows, columns) <= _SIDE - 1 - _EDGE)
        if step < _STEPS:
            known = changes[inside]
            found = np.linalg.solve(known.T @ known + 1e-6 * np.eye(6), known.T @ moved[inside])
            move = found[:4] / max(found[4], 0.5)
            place = np.clip(place - np.clip(move, -1, 1), -_MOST_MOVED, _MOST_MOVED)
    difference = np.where(inside, _standard(moved, inside) - _standard(other, inside), 0) ** 2
    return float(np.sqrt(difference.reshape(_SIDE // _BLOCK, _BLOCK, -1, _BLOCK).mean((1, 3)).max()))


def _standard(picture: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    values = picture[inside]
    return (picture - values.mean()) / max(values.std(), 1.0)


class Catalogue:
    """Pictures among which copies of others are looked up, in far less time than by comparing each with each."""

    def __init__(self, signatures: Sequence[Signature]):
        self._signatures = signatures
        self._by_digest = {one.digest: index for index, one in reversed(list(enumerate(signatures)))}
        hashed = [(index, hash_) for index, one in enumerate(signatures) for hash_ in one.hashes]
        self._owners = np.array([index for index, _ in hashed], np.int64)
        self._hashes = np.array([hash_ for _, hash_ in hashed], np.uint64)
        # By band: the hashes in the order of their bits there, and where each value of these begins.
        self._bands = []
        for bits in _bands(self._hashes):
            order = np.argsort(bits, kind="stable")
            self._bands.append((order, np.searchsorted(bits[order], np.arange(2**_BITS + 1))))

    def find(self, picture: Signature) -> tuple[int, bool] | None:
        """The index of a copy, and whether its bytes are the same; None where there is no copy."""
        if (index := self._by_digest.get(picture.digest)) is not None:
            return index, True
        for index in self._similar(picture.hashes):
            if is_same(self._signatures[index].thumbnail, picture.thumbnail):
                return index, False
        return None

    def _similar(self, hashes: Sequence[int]) -> list[int]:
        """Indices of pictures whose hashes are similar to one of these, the most similar first."""
        found: dict[int, int] = {}
        for wanted in np.array(hashes, np.uint64):
            places = [np.empty(0, np.int64)]
            for (order, begins), bits in zip(self._bands, _bands(wanted), strict=True):
                near = (bits ^ _FLIPS).astype(np.int64)
                ranges = zip(begins[near], begins[near + 1], strict=True)
                places += [order[start:end] for start, end in ranges if end > start]
            close = np.concatenate(places)
            distances = np.bitwise_count(self._hashes[close] ^ wanted)
            near_enough = distances <= TOLERANCE
            for owner, distance in zip(self._owners[close[near_enough]], distances[near_enough], strict=True):
                found[int(owner)] = min(int(distance), found.get(int(owner), TOLERANCE))
        return sorted(found, key=lambda index: (found[index], index))[:_CANDIDATES]


def _bands(hashes: NDArray[np.uint64]) -> list[NDArray[np.uint16]]:
    """The bits of each of the four bands of the hashes."""
    return [(hashes >> np.uint64(_BITS * band)).astype(np.uint16) for band in range(_BANDS)]

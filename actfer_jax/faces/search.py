"""The searches for faces in an image: dlib's HOG detector, upright or on rotated copies, and its CNN detector."""

import math
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import dlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from actfer_jax.faces.landmarks import model_file, upright_copy
from actfer_jax.faces.views import Affine, Box, compose, cut, rectangle, transform

ROTATIONS = (90, 180, 270, 45, -45)
_MOST_ENLARGED = 4  # A face of fewer than 20 pixels, which HOG finds enlarged so, shows no expression.
_CNN_WINDOW = 40  # Pixels: the CNN finds no smaller faces.
_CLOSE_SIDE = 240  # Of the copy in which the direction of a face is found, in pixels.
_CLOSE_FACE = 110  # Of the face in it: HOG's filters see faces from 80 pixels on.
_CLOSE_SCORE = -1.0  # A lower threshold than for a search in the whole image: a face is known to be there.

_local = threading.local()
_cnn_lock = threading.Lock()


class Find(NamedTuple):
    """A face that a search found, before its landmarks.

    Attributes:
      box: (left, top, right, bottom) in pixels of the image. That of a tilted face is an upright box of the same size.
      score: the detector's confidence.
      copy: the map from the upright copy in which landmarks are looked for (`landmarks.upright_copy`).
    """

    box: Box
    score: float
    copy: Affine


def hog(image: NDArray[np.uint8], pixels: int) -> list[Find]:
    """Finds upright faces of at least 80 pixels in the image, shrunk to at most `pixels` pixels."""
    return _hog(*_scaled(image, _shrink(_area(image), pixels)))


def hog_enlarged(image: NDArray[np.uint8], pixels: int) -> list[Find]:
    """The same at twice the size of `hog`, then at four times where that has at most `pixels` pixels."""
    area = _area(image)
    scales = [2 * _shrink(area, pixels), *_enlargements(area, pixels)[1:]]
    return next(filter(None, (_hog(*_scaled(image, scale)) for scale in scales)), [])


def hog_rotated(image: NDArray[np.uint8], pixels: int) -> list[Find]:
    """The same on copies rotated by `ROTATIONS` degrees, then on enlarged ones of at most `pixels` pixels."""
    area = (sum(image.shape[:2]) / 2) ** 2  # Half of what a copy rotated by 45 degrees has.
    for scale in (_shrink(area, pixels), *_enlargements(area, pixels)):
        scaled, to_image = _scaled(image, scale)
        finds = [find for copy, back in _rotated(scaled) for find in _hog(copy, compose(to_image, back))]
        if finds:
            return _distinct(finds)
    return []


def cnn(image: NDArray[np.uint8], pixels: int) -> list[Find]:
    """What dlib's CNN detector finds in the image, scaled to `pixels` pixels, or fourfold where that is less.

    One search runs at a time, since the detector keeps buffers that grow with the pixels. Python's other threads wait
    for it too: dlib does not release the interpreter.
    """
    scaled, to_image = _scaled(image, min(_MOST_ENLARGED, math.sqrt(pixels / _area(image))))
    if min(scaled.shape[:2]) < _CNN_WINDOW:
        return []  # Of a long strip the detector would make a pyramid of any size.
    with _cnn_lock:
        found = [(find.rect, float(find.confidence)) for find in _cnn_detector()(scaled, 0)]
    finds = [_find(rect, score, to_image) for rect, score in found]
    # This detector finds tilted faces too, and does not tell how they are tilted.
    return [find if (turned := turn(image, find)) is None else turned for find in finds]


def cnn_file() -> str:
    """The file of dlib's CNN detector.

    Raises:
      FileNotFoundError: it is not installed.
    """
    return model_file("mmod_human_face_detector.dat", "CNN face detector", "leave 'cnn' out of config.faces.steps")


def turn(image: NDArray[np.uint8], find: Find) -> Find | None:
    """The find with the upright copy in which HOG sees the face best, of eight directions; None if it sees none."""
    middle = (np.array(find.box[:2]) + find.box[2:]) / 2
    scale = max(find.box[2] - find.box[0], find.box[3] - find.box[1]) / _CLOSE_FACE
    best: Find | None = None
    for degrees in range(0, 360, 45):
        linear = _rotation(degrees) * scale
        to_image = np.column_stack([linear, middle - linear @ [_CLOSE_SIDE / 2, _CLOSE_SIDE / 2]])
        close = cut(image, to_image, (_CLOSE_SIDE, _CLOSE_SIDE)).pixels
        for seen in _hog(close, to_image, _CLOSE_SCORE):
            there = np.abs((np.array(seen.box[:2]) + seen.box[2:]) / 2 - middle).max() < scale * _CLOSE_FACE / 3
            if there and (best is None or seen.score > best.score):
                best = seen
    return best and find._replace(copy=best.copy)


def _hog(pixels: NDArray[np.uint8], to_image: Affine, least_score: float = 0.0) -> list[Find]:
    # A dlib detector keeps buffers between calls, so each thread has its own.
    if not hasattr(_local, "detector"):
        _local.detector = dlib.get_frontal_face_detector()
    rects, scores, _ = _local.detector.run(pixels, 0, least_score)
    return [_find(rect, float(score), to_image) for rect, score in zip(rects, scores, strict=True)]


def _find(rect: Any, score: float, to_image: Affine) -> Find:
    """The find of dlib's rectangle in a copy of the image with this map."""
    corners = transform(to_image, rectangle((rect.left(), rect.top(), rect.right() + 1, rect.bottom() + 1)))
    across, down = corners[1] - corners[0], corners[3] - corners[0]
    width, height = float(np.hypot(*across)), float(np.hypot(*down))
    low, high = corners.min(0), corners.max(0)
    if across.all():  # Tilted: its corners stand out of the box.
        low, high = corners.mean(0) - (width / 2, height / 2), corners.mean(0) + (width / 2, height / 2)
    copy = upright_copy(corners[0], across / width, max(width, height))
    return Find((float(low[0]), float(low[1]), float(high[0]), float(high[1])), score, copy)


def _area(image: NDArray[np.uint8]) -> int:
    return image.shape[0] * image.shape[1]


def _shrink(area: float, pixels: int) -> float:
    return min(1.0, math.sqrt(pixels / area))


def _enlargements(area: float, pixels: int) -> list[int]:
    return [scale for scale in (2, _MOST_ENLARGED) if scale**2 * area <= pixels]


def _scaled(image: NDArray[np.uint8], scale: float) -> tuple[NDArray[np.uint8], Affine]:
    """The image scaled by a factor, and the map back."""
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != (width, height):
        image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return np.ascontiguousarray(image), np.array([[width / size[0], 0.0, 0.0], [0.0, height / size[1], 0.0]])


def _rotated(image: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.uint8], Affine]]:
    """Copies of the whole image rotated by `ROTATIONS` degrees, each with the map back."""
    size = np.array(image.shape[1::-1])
    for degrees in ROTATIONS:
        linear = _rotation(degrees)
        width, height = np.ceil(np.abs(linear.T) @ size).astype(int).tolist()
        back = np.column_stack([linear, size / 2 - linear @ [width / 2, height / 2]])
        yield cut(image, back, (height, width)).pixels, back


def _rotation(degrees: int) -> NDArray[np.float64]:
    # Rounded, so that a right angle has zeros and maps pixels to pixels.
    cos, sin = (round(value(math.radians(degrees)), 15) for value in (math.cos, math.sin))
    return np.array([[cos, -sin], [sin, cos]])


def _distinct(finds: list[Find]) -> list[Find]:
    """Of finds of the same face, in which one's middle lies in the other's box, the best."""
    kept: list[Find] = []
    for find in sorted(finds, key=lambda find: -find.score):
        x, y = (find.box[0] + find.box[2]) / 2, (find.box[1] + find.box[3]) / 2
        if not any(k.box[0] < x < k.box[2] and k.box[1] < y < k.box[3] for k in kept):
            kept.append(find)
    return kept


@cache
def _cnn_detector() -> Any:
    return dlib.cnn_face_detection_model_v1(cnn_file())

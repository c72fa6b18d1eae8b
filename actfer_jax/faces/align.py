"""The aligned frame of a face, and the named regions in it."""

import numpy as np

from actfer_jax import facs
from actfer_jax.faces.detector import Face
from actfer_jax.faces.views import Affine, Box, invert, transform

_CHIP_UNITS = 3.0  # The chip's side: a face from brows to chin is about 2.1 units high, with an open mouth 2.5.
_EYES_BELOW_TOP = 0.82  # In units.
_NOSE_DROP = 0.7  # From the eye line to the base of the nose, in units: the usual proportion.
_REGION_PADDING = 0.3  # Of the distance between the inner eye corners.


def aligned_frame(face: Face, side: int) -> Affine:
    """The map from the aligned chip of `side` x `side` pixels to the original image, float64 [2, 3].

    The map is a similarity. It makes the eye line level and puts the midpoint of the eyes at a fixed place. The unit is
    the largest of three lengths: the distance between the eye centres, which a turned head shortens; the drop from the
    eyes to the base of the nose, divided by 0.7, which a nod shortens; an eighth of the box's width. The landmarks used
    are on the rigid part of the face, so that its expression does not move the frame.
    """
    left_eye, right_eye = face.landmarks[36:42].mean(0), face.landmarks[42:48].mean(0)
    across = right_eye - left_eye
    distance = float(np.hypot(*across))
    # Landmarks of a false detection may coincide.
    x_axis = across / distance if distance > 0 else np.array([1.0, 0.0])
    y_axis = np.array([-x_axis[1], x_axis[0]])
    eyes = (left_eye + right_eye) / 2
    drop = float((face.landmarks[33] - eyes) @ y_axis)
    unit = max(distance, drop / _NOSE_DROP, (face.box[2] - face.box[0]) / 8)
    linear = np.column_stack([x_axis, y_axis]) * (unit * _CHIP_UNITS / side)
    offset = eyes - linear @ [side / 2, side * _EYES_BELOW_TOP / _CHIP_UNITS]
    return np.column_stack([linear, offset])


def region_box(face: Face, region: str, frame: Affine) -> Box:
    """The padded box (x0, y0, x1, y1), in an aligned frame, around a region's landmarks."""
    points = transform(invert(frame), face.landmarks)
    inner_left, inner_right = points[list(facs.INNER_EYE_CORNERS)]
    padding = _REGION_PADDING * float(np.hypot(*(inner_right - inner_left)))
    inside = points[list(facs.REGION_LANDMARKS[region])]
    (x0, y0), (x1, y1) = inside.min(0) - padding, inside.max(0) + padding
    return float(x0), float(y0), float(x1), float(y1)

"""The shape of a drawn face: 68 landmarks in face units, moved by action units.

In face units x points right and y down in the image. The origin is midway between the eyes, whose centres are 0.64
apart. A neutral face reaches from the hairline at y = -0.69 to the chin at y = 1.15, so a face of height ``h`` pixels
has ``h / FACE_HEIGHT`` pixels per unit.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

HAIRLINE = -0.69
FACE_HEIGHT = 1.84

_JAW = [
    (0.70, -0.02),
    (0.69, 0.20),
    (0.665, 0.41),
    (0.615, 0.61),
    (0.525, 0.80),
    (0.405, 0.95),
    (0.275, 1.06),
    (0.14, 1.13),
]
_BROW = [(0.13, -0.205), (0.235, -0.27), (0.355, -0.295), (0.475, -0.27), (0.575, -0.205)]
_EYE = [(0.18, 0.015), (0.265, -0.05), (0.37, -0.052), (0.455, 0.005), (0.372, 0.045), (0.268, 0.047)]
_NOSE = [(0.0, -0.02), (0.0, 0.11), (0.0, 0.25), (0.0, 0.38)]
_NOSTRILS = [(-0.135, 0.445), (-0.07, 0.47), (0.0, 0.485), (0.07, 0.47), (0.135, 0.445)]
_LIPS = [
    *[(-0.275, 0.73), (-0.17, 0.685), (-0.065, 0.66), (0.0, 0.672), (0.065, 0.66), (0.17, 0.685), (0.275, 0.73)],
    *[(0.165, 0.79), (0.075, 0.822), (0.0, 0.828), (-0.075, 0.822), (-0.165, 0.79)],
    *[
        (-0.235, 0.73),
        (-0.085, 0.727),
        (0.0, 0.732),
        (0.085, 0.727),
        (0.235, 0.73),
        (0.085, 0.737),
        (0.0, 0.742),
        (-0.085, 0.737),
    ],
]


def _template() -> np.ndarray:
    def mirror(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(-x, y) for x, y in points]

    right_eye = [_EYE[i] for i in (0, 1, 2, 3, 4, 5)]
    left_eye = mirror([_EYE[i] for i in (3, 2, 1, 0, 5, 4)])
    jaw = [*mirror(_JAW), (0.0, 1.15), *reversed(_JAW)]
    return np.array([*jaw, *mirror(_BROW)[::-1], *_BROW, *_NOSE, *_NOSTRILS, *left_eye, *right_eye, *_LIPS])


TEMPLATE = _template()
"""Landmarks of the average neutral face, [68, 2], face units."""

LEFT = TEMPLATE[:, 0] < 0
"""Which landmarks lie on the side that is left in the image."""

# AU -> ((landmarks of the image's right half, dx, dy), ...) at full intensity, face units. The left half is mirrored.
# Landmarks on the midline move only by dy.
_MOVES: dict[int, tuple[tuple[tuple[int, ...], float, float], ...]] = {
    1: (((22,), -0.01, -0.125), ((23,), 0.0, -0.085), ((24,), 0.0, -0.03)),
    2: (((26, 25), 0.01, -0.105), ((24,), 0.0, -0.085), ((23,), 0.0, -0.03)),
    4: (((22,), -0.045, 0.08), ((23,), -0.045, 0.085), ((24,), -0.03, 0.07), ((25,), -0.015, 0.035)),
    5: (((43, 44), 0.0, -0.055),),
    6: (((46, 47), 0.0, -0.018), ((45,), 0.0, -0.005)),
    7: (((46, 47), 0.0, -0.026), ((43, 44), 0.0, 0.016)),
    9: (((31, 32, 33, 34, 35), 0.02, -0.05), ((30,), 0.0, -0.03), ((22, 23), -0.02, 0.04), ((50, 51, 52), 0.0, -0.045),
        ((53,), 0.0, -0.02), ((46, 47), 0.0, -0.012)),
    10: (((50, 51, 52, 53), 0.0, -0.06), ((61, 62, 63), 0.0, -0.05), ((34, 35), 0.015, -0.02)),
    11: (((53,), 0.0, -0.02), ((35,), 0.012, -0.02)),
    12: (((54, 64), 0.085, -0.10), ((53, 55), 0.05, -0.03), ((63, 65), 0.03, 0.0), ((50, 51, 52), 0.0, 0.012),
        ((56, 57, 58), 0.0, 0.012)),
    13: (((54, 64), 0.01, -0.10), ((53, 55), 0.01, -0.04)),
    14: (((54, 64), 0.055, -0.012), ((53, 55), 0.03, 0.0)),
    15: (((54, 64), 0.015, 0.10), ((55,), 0.02, 0.045), ((53,), 0.01, 0.035)),
    16: (((55, 56, 57), 0.0, 0.05), ((65, 66), 0.0, 0.045)),
    17: (((55, 56, 57), 0.0, -0.035), ((54, 64), 0.0, 0.022), ((50, 51, 52, 53), 0.0, -0.025),
        ((61, 62, 63, 65, 66), 0.0, -0.028), ((8, 9, 10), 0.0, -0.03)),
    18: (((54, 64), -0.12, 0.0), ((53, 55), -0.06, 0.0), ((50, 51, 52), 0.0, -0.02), ((56, 57), 0.0, 0.025)),
    19: (((56, 57, 55), 0.0, 0.05), ((65, 66), 0.0, 0.06)),
    20: (((54, 64), 0.115, 0.015), ((53, 55), 0.07, 0.01), ((63, 65), 0.05, 0.0), ((52,), 0.02, 0.01),
        ((56,), 0.03, -0.012)),
    22: (((54, 64), -0.09, 0.0), ((53, 55), -0.045, 0.0), ((50, 51, 52), 0.0, -0.055), ((56, 57), 0.0, 0.055),
        ((61, 62, 63), 0.0, -0.02), ((65, 66), 0.0, 0.025)),
    23: (((54, 64), -0.045, 0.0), ((53,), -0.02, 0.02), ((50, 51, 52), 0.0, 0.026), ((55,), -0.02, -0.02),
        ((56, 57), 0.0, -0.03)),
    24: (((54, 64), -0.015, 0.0), ((53,), 0.0, 0.024), ((50, 51, 52), 0.0, 0.034), ((55,), 0.0, -0.024),
        ((56, 57), 0.0, -0.042)),
    25: (((65, 66), 0.0, 0.055), ((55, 56, 57), 0.0, 0.045), ((61, 62, 63), 0.0, -0.016),
        ((50, 51, 52, 53), 0.0, -0.012)),
    26: (((65, 66), 0.0, 0.15), ((55, 56, 57), 0.0, 0.15), ((54, 64), -0.02, 0.045), ((8, 9, 10, 11), 0.0, 0.13),
        ((12, 13), 0.0, 0.06), ((63,), 0.0, -0.005)),
    27: (((65, 66), 0.0, 0.25), ((55, 56, 57), 0.0, 0.25), ((54, 64), -0.05, 0.085), ((8, 9, 10, 11), 0.0, 0.20),
        ((12, 13), 0.0, 0.10), ((61, 62, 63, 50, 51, 52), 0.0, -0.025)),
    28: (((50, 51, 52), 0.0, 0.05), ((53,), 0.0, 0.035), ((56, 57), 0.0, -0.062), ((55,), 0.0, -0.04),
        ((54, 64), -0.01, 0.0)),
    32: (((56, 57), 0.0, -0.055), ((55,), 0.0, -0.03), ((54, 64), 0.01, 0.0)),
    38: (((35,), 0.05, -0.012), ((34,), 0.025, -0.012)),
    39: (((35,), -0.045, 0.015), ((34,), -0.025, 0.01)),
    43: (((43, 44), 0.0, 0.092), ((46, 47), 0.0, -0.006)),
}  # fmt: skip

_MIRROR_PAIRS = (
    [(i, 16 - i) for i in range(17)] + [(i, 43 - i) for i in range(17, 27)] + [(i, 66 - i) for i in range(31, 36)]
)
_MIRROR_PAIRS += [(42, 39), (43, 38), (44, 37), (45, 36), (46, 41), (47, 40)]
_MIRROR_PAIRS += [(52, 50), (53, 49), (54, 48), (55, 59), (56, 58), (63, 61), (64, 60), (65, 67)]
MIRROR = {**{i: i for i in range(68)}, **dict(_MIRROR_PAIRS), **{b: a for a, b in _MIRROR_PAIRS}}
"""Landmark -> its mirror landmark."""


def _displacements() -> dict[int, np.ndarray]:
    fields = {}
    for au, moves in _MOVES.items():
        field = np.zeros((68, 2))
        for points, dx, dy in moves:
            for point in points:
                mirrored = MIRROR[point]
                on_midline = mirrored == point
                side = -1.0 if LEFT[point] else 1.0
                field[point] = (0.0 if on_midline else side * dx, dy)
                field[mirrored] = (0.0 if on_midline else -side * dx, dy)
        fields[au] = field
    return fields


DISPLACEMENTS = _displacements()
"""AU -> displacement of the landmarks at full intensity, [68, 2], face units."""

ONE_SIDED = (12, 14)
"""AUs that act on one side only in a one-sided expression."""

GROUPS = {
    "jaw": slice(0, 17), "brows": slice(17, 27), "nose": slice(27, 36),
    "left_eye": slice(36, 42), "right_eye": slice(42, 48), "mouth": slice(48, 68),
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """The difference of a person's resting face from the average face, whose ratios are 1 and shifts 0."""

    width: float = 1.0
    jaw_width: float = 1.0
    chin: float = 0.0
    eye_size: float = 1.0
    eye_openness: float = 1.0
    eye_spacing: float = 0.0
    brow_height: float = 0.0
    brow_arch: float = 0.0
    nose_width: float = 1.0
    nose_length: float = 1.0
    mouth_width: float = 1.0
    lip_thickness: float = 1.0


def neutral_landmarks(shape: Shape) -> np.ndarray:
    """The resting landmarks of a person, [68, 2], face units."""
    points = TEMPLATE.copy()
    jaw = points[GROUPS["jaw"]]
    depth = np.clip(jaw[:, 1] / 1.15, 0.0, 1.0)
    jaw[:, 0] *= 1.0 + (shape.jaw_width - 1.0) * depth
    jaw[:, 1] += shape.chin * depth**2
    for name, side in (("left_eye", -1.0), ("right_eye", 1.0)):
        eye = points[GROUPS[name]]
        centre = eye.mean(axis=0)
        scale = np.array([shape.eye_size, shape.eye_size * shape.eye_openness])
        eye[:] = centre + (eye - centre) * scale + (side * shape.eye_spacing, 0.0)
    brows = points[GROUPS["brows"]]
    brows[:, 1] += shape.brow_height
    brows[[2, 7], 1] -= shape.brow_arch
    brows[[1, 3, 6, 8], 1] -= 0.6 * shape.brow_arch
    nose = points[GROUPS["nose"]]
    nose[4:, 0] *= shape.nose_width
    nose[:, 1] *= shape.nose_length
    mouth = points[GROUPS["mouth"]]
    mouth[:, 0] *= shape.mouth_width
    outer = mouth[:12]
    outer[[1, 2, 3, 4, 5, 7, 8, 9, 10, 11], 1] = (
        0.733 + (outer[[1, 2, 3, 4, 5, 7, 8, 9, 10, 11], 1] - 0.733) * shape.lip_thickness
    )
    points[:, 0] *= shape.width
    return points


def expressive_landmarks(
    shape: Shape, aus: Mapping[int, float], *, side: str = "", asymmetry: float = 0.0
) -> np.ndarray:
    """Landmarks of a person who shows `aus`, [68, 2], face units.

    Args:
      shape: the resting face.
      aus: AU -> strength of its movement, 0..1.
      side: "left" or "right" (in the image) if AUs 12 and 14 act on one side only, else "".
      asymmetry: relative difference in strength between the two sides.
    """
    points = neutral_landmarks(shape)
    both = np.where(LEFT, 1.0 - asymmetry, 1.0 + asymmetry)[:, None]
    one = np.where(LEFT == (side == "left"), 1.0, 0.08)[:, None]
    for au, strength in aus.items():
        points += strength * DISPLACEMENTS[au] * (one if side and au in ONE_SIDED else both)
    # Neither lids nor lips cross.
    for upper, lower in ((37, 41), (38, 40), (43, 47), (44, 46), (61, 67), (62, 66), (63, 65)):
        points[upper, 1] = min(points[upper, 1], points[lower, 1] - 0.006)
    for outer, inner in ((50, 61), (51, 62), (52, 63)):
        points[outer, 1] = min(points[outer, 1], points[inner, 1] - 0.012)
    for outer, inner in ((58, 67), (57, 66), (56, 65)):
        points[outer, 1] = max(points[outer, 1], points[inner, 1] + 0.012)
    return points


def smooth(points_Nx2: np.ndarray, *, closed: bool, steps: int = 6) -> np.ndarray:
    """A Catmull-Rom curve through the points: [M, 2], the given points included."""
    points = np.asarray(points_Nx2, dtype=np.float64)
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.arange(steps)[:, None, None] / steps
    a, b, c, d = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    curve = curve.transpose(1, 0, 2).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, points[-1:]])

"""Furrows, lines and shading of action units, and the pores that hide the finest lines.

All curves are in face units, relative to landmarks, so they move with the face. A furrow of a plain AU is a dark line.
A line of a *fine* AU is a dark core between two bright flanks. Its profile, the second derivative of a Gaussian, sums
to zero: a view too coarse for the core averages most of the line away. Pores take the place of absent fine lines: they
are softer, fainter dashes along the same strokes. In a coarse view lines and pores are equally strong, with the same
places and directions, and cannot be told apart. In a zoom they can.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_laplace

from actfer_jax.data.datasets.synth_faces.geometry import MIRROR, ONE_SIDED

ToPixels = Callable[[np.ndarray], np.ndarray]

Curve = tuple[int, float, float, float, float, float]
"""(landmark, x and y of the start and of the end relative to it, bend), for the right half of the image."""

LINE_SIGMA = 0.0092
"""Half the width of the dark core of a fine line, face units: cores are 2 to 3 px wide on faces 200 to 320 px high."""

PORE_SIGMA = 0.015
"""The same for the dashes of pores."""

PORE_DEPTH = 0.45
"""Contrast of pores relative to that of lines. With it both are equally strong in a coarse view."""

FURROW_SIGMA = 0.014
"""Standard deviation of the profile of a plain furrow, face units."""

_VERTICAL_ABOVE_LIPS = tuple((51, x, -0.095, 0.9 * x, -0.015, 0.0) for x in (0.02, 0.065, 0.11, 0.155, 0.20))
_VERTICAL_BELOW_LIPS = tuple((57, x, 0.02, 1.1 * x, 0.10, 0.0) for x in (0.02, 0.065, 0.11, 0.155))

FURROWS: dict[int, tuple[Curve, ...]] = {
    1: ((27, 0.0, -0.44, 0.20, -0.45, 0.01), (27, 0.0, -0.51, 0.20, -0.52, 0.01)),
    2: ((24, -0.10, -0.13, 0.17, -0.08, -0.03), (24, -0.10, -0.20, 0.15, -0.15, -0.03)),
    4: ((27, 0.055, -0.37, 0.012, -0.12, -0.008), (27, 0.108, -0.35, 0.045, -0.10, -0.008),
        (27, 0.135, -0.28, 0.08, -0.10, -0.008)),
    6: ((45, 0.03, -0.03, 0.13, -0.085, 0.005), (45, 0.035, 0.008, 0.145, 0.012, 0.0),
        (45, 0.03, 0.04, 0.13, 0.095, -0.005), (46, -0.13, 0.085, 0.09, 0.055, -0.03)),
    7: ((47, -0.06, 0.035, 0.16, 0.03, -0.02),),
    9: ((28, 0.035, -0.025, 0.095, -0.10, 0.0), (28, 0.04, 0.03, 0.115, -0.045, 0.0),
        (28, 0.045, 0.085, 0.13, 0.015, 0.0), (28, 0.05, 0.14, 0.135, 0.075, 0.0),
        (28, 0.0, -0.055, 0.035, -0.06, 0.0), (28, 0.0, -0.005, 0.035, -0.01, 0.0)),
    10: ((35, 0.03, -0.03, 0.10, 0.11, -0.02),),
    11: ((35, 0.05, 0.0, 0.15, 0.16, -0.02),),
    12: ((35, 0.035, -0.03, 0.235, 0.20, -0.04),),
    13: ((54, 0.035, -0.09, 0.06, 0.02, -0.02),),
    14: ((54, 0.035, -0.06, 0.035, 0.06, -0.025), (54, 0.07, -0.05, 0.07, 0.05, -0.02)),
    15: ((54, 0.0, 0.035, 0.045, 0.14, -0.01), (54, 0.04, 0.025, 0.085, 0.13, -0.01)),
    16: ((57, 0.0, 0.04, 0.165, 0.033, 0.0), (57, 0.0, 0.08, 0.165, 0.07, 0.0)),
    17: ((57, 0.0, 0.135, 0.13, 0.18, 0.025), (57, 0.0, 0.175, 0.09, 0.21, 0.02)),
    18: _VERTICAL_ABOVE_LIPS[:3],
    20: ((54, 0.035, -0.075, 0.06, 0.10, -0.02), (54, 0.08, -0.075, 0.11, 0.10, -0.02),
        (54, 0.125, -0.06, 0.16, 0.09, -0.02)),
    22: _VERTICAL_ABOVE_LIPS[:2],
    23: _VERTICAL_ABOVE_LIPS,
    24: _VERTICAL_BELOW_LIPS,
    28: _VERTICAL_BELOW_LIPS[:2],
    39: ((34, 0.04, -0.07, 0.06, 0.0, -0.02),),
}  # fmt: skip

PORE_GROUPS: tuple[tuple[int, ...], ...] = ((4,), (6,), (9,), (17,), (23,), (16, 24), (14, 15, 20))
"""AUs whose fine lines share a place. A face that shows none of a group has pores there, shaped like one of them."""

# AU -> blobs of shading at full intensity: (landmark, x, y, width, height, amount), right half, face units.
_BLOBS: dict[int, tuple[tuple[int, float, float, float, float, float], ...]] = {
    1: ((21, 0.0, -0.16, 0.16, 0.05, 0.07),),
    4: ((27, 0.05, -0.20, 0.05, 0.12, -0.10), (23, 0.0, 0.05, 0.12, 0.04, -0.12)),
    6: ((46, 0.02, 0.13, 0.13, 0.06, 0.12), (46, 0.0, 0.055, 0.15, 0.02, -0.14)),
    7: ((47, 0.05, 0.035, 0.13, 0.02, -0.12),),
    9: ((28, 0.075, 0.02, 0.035, 0.11, -0.14), (35, 0.03, -0.05, 0.04, 0.07, -0.10)),
    10: ((35, 0.07, 0.06, 0.05, 0.08, -0.14), (51, 0.05, -0.05, 0.10, 0.03, 0.08)),
    11: ((35, 0.11, 0.09, 0.05, 0.10, -0.12),),
    12: ((46, 0.05, 0.28, 0.12, 0.10, 0.13), (54, 0.05, -0.01, 0.03, 0.05, -0.16)),
    13: ((54, 0.08, -0.16, 0.08, 0.08, 0.16),),
    14: ((54, 0.05, 0.0, 0.025, 0.05, -0.17),),
    15: ((54, 0.03, 0.06, 0.05, 0.05, -0.09),),
    16: ((57, 0.06, 0.07, 0.12, 0.025, -0.14),),
    17: ((57, 0.05, 0.10, 0.11, 0.025, -0.20), (57, 0.05, 0.20, 0.09, 0.05, 0.12)),
    18: ((51, 0.04, -0.06, 0.10, 0.03, 0.08),),
    20: ((54, 0.06, 0.02, 0.03, 0.08, -0.08),),
    22: ((57, 0.05, 0.06, 0.12, 0.03, -0.12),),
    23: ((51, 0.08, -0.04, 0.15, 0.025, -0.12),),
    24: ((51, 0.08, -0.05, 0.16, 0.025, 0.10), (57, 0.08, 0.035, 0.15, 0.022, -0.16)),
    28: ((57, 0.06, 0.04, 0.16, 0.025, -0.14), (51, 0.06, -0.03, 0.15, 0.025, -0.12)),
    38: ((35, 0.01, -0.02, 0.04, 0.04, -0.12),),
    39: ((34, 0.06, -0.04, 0.03, 0.05, -0.14),),
}

# Shading of every face: sockets, nose, philtrum, lower lip, chin, cheek bones, temples.
_RELIEF: tuple[tuple[int, float, float, float, float, float], ...] = (
    (43, 0.04, -0.04, 0.17, 0.07, -0.13), (42, -0.04, 0.0, 0.05, 0.08, -0.16), (28, 0.085, 0.06, 0.04, 0.18, -0.12),
    (27, 0.0, 0.15, 0.03, 0.24, 0.06), (30, 0.0, 0.02, 0.05, 0.05, 0.07), (35, 0.0, 0.01, 0.05, 0.03, -0.14),
    (33, 0.05, 0.035, 0.09, 0.025, -0.20), (51, 0.0, -0.06, 0.025, 0.05, -0.05), (57, 0.04, 0.055, 0.13, 0.03, -0.15),
    (8, 0.04, -0.11, 0.12, 0.07, 0.07), (46, 0.05, 0.24, 0.14, 0.10, 0.06), (14, 0.0, 0.0, 0.16, 0.36, -0.22),
    (11, 0.05, 0.03, 0.16, 0.18, -0.20), (8, 0.08, 0.02, 0.30, 0.06, -0.18), (27, 0.10, -0.46, 0.26, 0.11, 0.06),
    (16, 0.0, -0.30, 0.13, 0.26, -0.16),
)  # fmt: skip


_SHIFT = 0.024
"""The largest shift, in x and in y, of all lines or pores of one AU and side together; face units."""

_WAVE = 0.007
"""The amplitude of a line's waves, face units: nearly half a pixel of a coarse view, so that what remains of a line
there has no direction of its own."""

_DASH_POINTS = 8
_DASH_TURN = 0.4
"""The approximate number of points of a dash, and its rotation from its stroke (standard deviation, radians)."""

_SPACING = 0.006
"""Distance of the points of a stroke, face units."""


class _Strokes(NamedTuple):
    """The strokes along some curves on both sides as n points, in face units. A dash is a short run of points."""

    anchor: np.ndarray
    offset: np.ndarray
    side: np.ndarray
    stroke: np.ndarray
    taper: np.ndarray
    arc: np.ndarray
    normal: np.ndarray
    dash: np.ndarray
    dash_centre: np.ndarray
    dash_step: np.ndarray


@cache
def _strokes(curves: tuple[Curve, ...], grain: float = 1.0) -> _Strokes:
    rows: list[tuple[float, ...]] = []
    dash_centres: list[np.ndarray] = []
    strokes = 0
    for landmark, x0, y0, x1, y1, bend in curves:
        for anchor, side in ((landmark, 1.0), (MIRROR[landmark], -1.0)):
            start, along = np.array([side * x0, y0]), np.array([side * (x1 - x0), y1 - y0])
            length = float(np.hypot(*along))
            count = max(int(length / _SPACING), 2)
            t = np.linspace(0.0, 1.0, count)
            normal = np.array([along[1], -along[0]]) / length * side
            points = start + t[:, None] * along + (4 * bend * t * (1 - t))[:, None] * normal
            parts = np.array_split(np.arange(count), max(round(count / (_DASH_POINTS * grain)), 1))
            for part in parts:
                for position, i in enumerate(part):
                    step = (position - (len(part) - 1) / 2) * _SPACING
                    taper = np.sin(np.pi * t[i]) ** 0.5
                    whole = (anchor, strokes, len(dash_centres))
                    rows.append((*whole, *points[i], side, taper, t[i] * length, *normal, step))
                dash_centres.append(points[part].mean(axis=0))
            strokes += 1
    table = np.array(rows).reshape(-1, 11)
    return _Strokes(
        anchor=table[:, 0].astype(int),
        stroke=table[:, 1].astype(int),
        dash=table[:, 2].astype(int),
        offset=table[:, 3:5],
        side=table[:, 5],
        taper=table[:, 6],
        arc=table[:, 7],
        normal=table[:, 8:10],
        dash_step=table[:, 10],
        dash_centre=np.array(dash_centres).reshape(-1, 2),
    )


def furrow_points(landmarks: np.ndarray, strengths: Mapping[int, float], side: str) -> np.ndarray:
    """Points of all furrows of visible AUs, [n, 3]: x, y (face units) and depth."""
    points = [np.zeros((0, 3))]
    for au, strength in strengths.items():
        strokes = _strokes(FURROWS.get(au, ()))
        depth = 0.24 * strength * strokes.taper
        if side and au in ONE_SIDED:
            depth = depth * (strokes.side == (-1.0 if side == "left" else 1.0))
        points.append(np.column_stack([landmarks[strokes.anchor] + strokes.offset, depth]))
    return np.concatenate(points)


def line_points(landmarks: np.ndarray, aus: Iterable[int], rng: np.random.Generator) -> np.ndarray:
    """Points of the fine lines of some AUs, [n, 2], face units."""
    return np.concatenate([np.zeros((0, 2)), *(lines_along(landmarks, FURROWS[au], rng) for au in sorted(aus))])


def pore_points(landmarks: np.ndarray, aus: Iterable[int], rng: np.random.Generator) -> np.ndarray:
    """Points of the pores that replace the fine lines of some AUs, [n, 2], face units."""
    return np.concatenate([np.zeros((0, 2)), *(pores_along(landmarks, FURROWS[au], rng) for au in sorted(aus))])


def lines_along(
    landmarks: np.ndarray,
    curves: tuple[Curve, ...],
    rng: np.random.Generator,
    *,
    grain: float = 1.0,
    shift: float = _SHIFT,
    wave: float = _WAVE,
) -> np.ndarray:
    """Points of fine lines along curves, on both sides, [n, 2], face units.

    Args:
      grain: how large the irregularities are, relative to those of the first edition.
      shift: the largest shift, in x and in y, of all lines of one side together.
      wave: the amplitude of their waves.
    """
    strokes = _strokes(curves, grain)
    count = int(strokes.stroke[-1]) + 1
    pace, phase = rng.uniform(55, 90, count) / grain, rng.uniform(0, 2 * np.pi, count)
    waves = wave * np.sin(pace[strokes.stroke] * strokes.arc + phase[strokes.stroke])
    offset = strokes.offset + rng.normal(0, 0.006 * grain, (count, 2))[strokes.stroke] + waves[:, None] * strokes.normal
    return np.asarray(landmarks[strokes.anchor] + offset + _shift(rng, strokes, shift))


def pores_along(
    landmarks: np.ndarray,
    curves: tuple[Curve, ...],
    rng: np.random.Generator,
    *,
    grain: float = 1.0,
    shift: float = _SHIFT,
) -> np.ndarray:
    """Points of pores in the place of the lines of `lines_along`, [n, 2], face units."""
    strokes = _strokes(curves, grain)
    count = len(strokes.dash_centre)
    angles = rng.normal(0, _DASH_TURN, count)[strokes.dash]
    along = strokes.dash_step[:, None] * np.stack([strokes.normal[:, 1], -strokes.normal[:, 0]], axis=-1)
    turned = np.cos(angles)[:, None] * along + np.sin(angles)[:, None] * along[:, ::-1] * (-1, 1)
    offset = (strokes.dash_centre + rng.normal(0, 0.010 * grain, (count, 2)))[strokes.dash] + turned
    return np.asarray(landmarks[strokes.anchor] + offset + _shift(rng, strokes, shift))


def _shift(rng: np.random.Generator, strokes: _Strokes, most: float) -> np.ndarray:
    # Up to more than a pixel of a coarse view, so that on average lines are nowhere darker than pores in it.
    return rng.uniform(-most, most, (2, 2))[(strokes.side > 0).astype(int)]


def _splat(points_xy: np.ndarray, weights: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bilinear impulses, float32 `shape`."""
    corner = np.floor(points_xy).astype(np.int64)
    part = points_xy - corner
    height, width = shape
    image = np.zeros(height * width)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = corner[:, 0] + dx, corner[:, 1] + dy
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        share = np.where(dx, part[:, 0], 1 - part[:, 0]) * np.where(dy, part[:, 1], 1 - part[:, 1])
        image += np.bincount((y * width + x)[inside], (weights * share)[inside], height * width)
    return image.reshape(shape).astype(np.float32)


def furrow_map(points: np.ndarray, to_pixels: ToPixels, scale: float, shape: tuple[int, int]) -> np.ndarray:
    """Relative darkening by furrows, float32 `shape`.

    Args:
      points: [n, 3] from `furrow_points`; a furrow has the depth of its points.
      to_pixels: maps [n, 2] face units to pixels of the map.
      scale: pixels per face unit.
      shape: of the map.
    """
    sigma = FURROW_SIGMA * scale
    image = _splat(to_pixels(points[:, :2]), points[:, 2] * (_SPACING * scale), shape)
    # A line of unit impulses a pixel apart becomes a ridge of height 1 / (sigma sqrt(2 pi)).
    return gaussian_filter(image, sigma, truncate=3.0) * np.float32(sigma * np.sqrt(2 * np.pi))


def spot_map(points: np.ndarray, sigma: float, to_pixels: ToPixels, scale: float, shape: tuple[int, int]) -> np.ndarray:
    """Relative darkening by soft round spots, float32 `shape`, 1 in the middle of a spot that stands alone.

    Args:
      points: [n, 2], the middles, face units.
      sigma: standard deviation of a spot, face units.
      to_pixels, scale, shape: as in `furrow_map`.
    """
    pixels = sigma * scale
    image = _splat(to_pixels(points), np.full(len(points), 2 * np.pi * pixels**2), shape)
    return np.asarray(gaussian_filter(image, pixels, truncate=3.0))


def fine_map(points: np.ndarray, sigma: float, to_pixels: ToPixels, scale: float, shape: tuple[int, int]) -> np.ndarray:
    """Relative darkening by strokes whose profile sums to zero, float32 `shape`, about 1 along a line.

    Args:
      points: [n, 2] from `line_points` or `pore_points`.
      sigma: half the width of the dark core of a stroke, face units.
      to_pixels, scale, shape: as in `furrow_map`.
    """
    pixels = sigma * scale
    image = _splat(to_pixels(points), np.full(len(points), _SPACING * scale), shape)
    # A line of unit impulses a pixel apart becomes a ridge of height 1 / (sigma^3 sqrt(2 pi)).
    return -gaussian_laplace(image, pixels, truncate=3.5) * np.float32(pixels**3 * np.sqrt(2 * np.pi))


def shading_blobs(landmarks: np.ndarray, strengths: Mapping[int, float], side: str) -> np.ndarray:
    """Gaussian blobs of shading, [n, 5]: x, y, width, height (face units) and amount (relative, negative is darker)."""
    rows = []
    for blobs, strength, one_sided in [(_RELIEF, 1.0, False)] + [
        (_BLOBS.get(au, ()), strength, bool(side) and au in ONE_SIDED) for au, strength in strengths.items()
    ]:
        for landmark, dx, dy, width, height, amount in blobs:
            for anchor, sign in ((landmark, 1.0), (MIRROR[landmark], -1.0)):
                if one_sided and sign != (-1.0 if side == "left" else 1.0):
                    continue
                # A blob on the midline is its own mirror image.
                share = 0.5 if anchor == MIRROR[landmark] and dx == 0.0 else 1.0
                x, y = landmarks[anchor]
                rows.append((x + sign * dx, y + dy, width, height, share * strength * amount))
    return np.array(rows)

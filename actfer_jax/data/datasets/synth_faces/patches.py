"""The busy patches of the second edition: where a subtle face is decided, and by what.

Each region has a patch of skin that its own zoom shows finely, and no other zoom does: it lies outside of the other
regions' crops, or its lines are too fine for them. On a subtle face the patch of the deciding region is freckled,
whichever of its two emotions the face shows: even a coarse view says where the face is busy. Between the freckles lie
fine lines, where the action unit is present, or pores, where it is absent (`wrinkles`). The small freckles are of the
sizes that a coarse view takes fine lines for, and so hide from it what is left of them there.
"""

from typing import NamedTuple

import numpy as np

from actfer_jax.data.datasets.synth_faces import wrinkles
from actfer_jax.data.datasets.synth_faces.geometry import MIRROR
from actfer_jax.data.datasets.synth_faces.wrinkles import Curve, ToPixels


class Area(NamedTuple):
    """A rectangle in the right half of the image relative to a landmark, in face units. The left half has its mirror
    image."""

    landmark: int
    left: float
    top: float
    right: float
    bottom: float


class Patch(NamedTuple):
    """Where a region is busy.

    Attributes:
      areas: the places.
      upright: its lines run down rather than across.
      sigma: half the width of the dark core of a line, face units.
      contrast: of a line against the skin.
    """

    areas: tuple[Area, ...]
    upright: bool
    sigma: float
    contrast: float

    @property
    def grain(self) -> float:
        """The size of all irregularities, relative to those that go with `_FINE`."""
        return self.sigma / _FINE

    @property
    def curves(self) -> tuple[Curve, ...]:
        """The lines, evenly spaced."""
        curves: list[Curve] = []
        for landmark, left, top, right, bottom in self.areas:
            across = right - left if self.upright else bottom - top
            for share in np.arange(0.5, count := max(round(across / (_SPACING * self.grain)), 1)) / count:
                x, y = left + share * (right - left), top + share * (bottom - top)
                x0, y0, x1, y1 = (x, top, x, bottom) if self.upright else (left, y, right, y)
                curves.append((landmark, float(x0), float(y0), float(x1), float(y1), 0.0))
        return tuple(curves)


_FINE = 0.0046
"""Half the width of a line that the zooms into eyes, nose and mouth show, and the coarser one into the cheeks does not;
face units."""

PATCHES: dict[str, Patch] = {
    "brows": Patch((Area(27, 0.0, -0.33, 0.10, -0.20),), True, _FINE, 0.36),
    "eyes": Patch((Area(46, -0.09, 0.012, 0.09, 0.065), Area(45, 0.02, -0.05, 0.075, 0.055)), False, _FINE, 0.24),
    "nose": Patch((Area(29, 0.02, -0.03, 0.12, 0.16),), True, _FINE, 0.17),
    "mouth": Patch((Area(54, 0.0, -0.09, 0.085, -0.028),), True, _FINE, 0.24),
    "chin": Patch((Area(8, 0.0, -0.13, 0.18, -0.03),), False, _FINE, 0.25),
    "cheeks": Patch((Area(46, 0.04, 0.225, 0.25, 0.45),), False, 0.0082, 0.16),
}
"""Lines are stronger where only the aligned view, and no other zoom, shows the patch too."""

_SPACING, _SHIFT, _WAVE = 0.034, 0.012, 0.010
"""The distance between lines, their largest common shift and the amplitude of their waves, with lines of `_FINE`."""
_SMALL, _LARGE = 1.75, 0.022
"""The standard deviations of a small freckle, in those of a line, and of a large one, in face units."""
_COVER = 0.15
"""How many freckles of each size lie in a square whose side is their standard deviation."""
_SMALL_DEPTH, _LARGE_DEPTH = 0.16, 0.10
_PORE_WIDTH = wrinkles.PORE_SIGMA / wrinkles.LINE_SIGMA
_PORE_DEPTH = 0.48
"""The width and the contrast of pores, relative to lines: with them both are equally strong in the coarser zoom."""


def busy_map(
    landmarks: np.ndarray,
    region: str,
    where: tuple[ToPixels, float, tuple[int, int]],
    *,
    lines: bool,
    contrast: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Relative darkening by the freckles of a region's patch, and its lines or pores, float32 `shape`.

    Args:
      where: to_pixels, scale, shape, as in `wrinkles.furrow_map`.
      lines: whether the deciding action unit is present.
      contrast: of its lines against the skin.
      rng: for the same one, the freckles are the same with lines and without.
    """
    patch = PATCHES[region]
    dark = np.zeros(where[2], np.float32)
    for sigma, depth in ((_SMALL * patch.sigma, _SMALL_DEPTH), (_LARGE, _LARGE_DEPTH)):
        points = _scattered(landmarks, patch.areas, _COVER / sigma**2, rng)
        dark += depth * wrinkles.spot_map(points, sigma, *where)
    if lines:
        points = wrinkles.lines_along(
            landmarks, patch.curves, rng, grain=patch.grain, shift=_SHIFT * patch.grain, wave=_WAVE * patch.grain
        )
        return dark + contrast * wrinkles.fine_map(points, patch.sigma, *where)
    points = wrinkles.pores_along(landmarks, patch.curves, rng, grain=patch.grain, shift=_SHIFT * patch.grain)
    return dark + contrast * _PORE_DEPTH * wrinkles.fine_map(points, _PORE_WIDTH * patch.sigma, *where)


def _scattered(landmarks: np.ndarray, areas: tuple[Area, ...], density: float, rng: np.random.Generator) -> np.ndarray:
    """Points scattered over areas and their mirror images, [n, 2], face units."""
    points = []
    for landmark, left, top, right, bottom in areas:
        count = round(density * (right - left) * (bottom - top))
        for anchor, side in ((landmark, 1.0), (MIRROR[landmark], -1.0)):
            points.append(landmarks[anchor] + rng.uniform((left, top), (right, bottom), (count, 2)) * (side, 1.0))
    return np.concatenate(points)

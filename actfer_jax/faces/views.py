"""Views: rectangles cut from an image, each with its affine map back to that image.

Coordinates are continuous pixel coordinates (x, y): pixel (row r, column c) covers the square from (c, r) to
(c + 1, r + 1), so an image of w x h pixels spans (0, 0) to (w, h). Affine maps are float64 [2, 3]; a point p goes to
`map[:, :2] @ p + map[:, 2]`. The policy reads and writes integers 0..1000 relative to a view's width and height.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from actfer_jax.config import Count, FieldError, check_fields
from actfer_jax.faces.images import check_image

Affine = NDArray[np.float64]
Box = tuple[float, float, float, float]

POLICY_UNITS = 1000
GREY = 128
"""The colour outside the image and of a blanked view: the vision tower's zero."""

_MAX_ASPECT = 200.0  # The Hugging Face processor of Qwen-VL models refuses larger ratios.
_MAX_SAMPLES = 4  # Samples per view pixel and axis.


@dataclass(frozen=True, eq=False)
class View:
    """The part of an image that the policy is shown, and its place in the image.

    Attributes:
      pixels: uint8 [h, w, 3]; [h, w, 0] if another process has the pixels.
      to_original: float64 [2, 3], from pixel coordinates of the view to pixel coordinates of the original image.
      name: what it shows, in a few words.
      image: the index of the sample's image that it was cut from.
    """

    pixels: NDArray[np.uint8]
    to_original: Affine
    name: str
    image: int = 0

    @classmethod
    def without_pixels(cls, size: tuple[int, int], to_original: Affine, name: str, image: int = 0) -> "View":
        """A view of (height, width) without pixels, for a process that does not need them."""
        return cls(np.empty((*size, 0), np.uint8), to_original, name, image)

    @property
    def is_seen(self) -> bool:
        """Whether this process has its pixels."""
        return self.pixels.shape[2] > 0

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @cached_property
    def digest(self) -> str:
        """A hash of its size and pixels, in hexadecimal: two views have the same if they show the same."""
        return hashlib.sha256(repr(self.pixels.shape).encode() + self.pixels.tobytes()).hexdigest()

    @property
    def footprint(self) -> NDArray[np.float64]:
        """The view's corners in the original image, float64 [4, 2], in order around it."""
        return self.to_image(rectangle((0.0, 0.0, self.width, self.height)))

    def to_image(self, points_Nx2: ArrayLike) -> NDArray[np.float64]:
        """Pixel coordinates of the view [N, 2] to pixel coordinates of the original image [N, 2]."""
        return transform(self.to_original, points_Nx2)

    def to_view(self, points_Nx2: ArrayLike) -> NDArray[np.float64]:
        """Pixel coordinates of the original image [N, 2] to pixel coordinates of the view [N, 2]."""
        return transform(invert(self.to_original), points_Nx2)

    def box_pixels(self, box: ArrayLike) -> Box:
        """The policy's box [x0, y0, x1, y1] in 0..1000 to pixel coordinates of the view."""
        x0, y0, x1, y1 = np.asarray(box, np.float64) / POLICY_UNITS
        return float(x0 * self.width), float(y0 * self.height), float(x1 * self.width), float(y1 * self.height)

    def box_to_original(self, box: ArrayLike) -> NDArray[np.float64]:
        """The corners [4, 2] in the original image of the policy's box [x0, y0, x1, y1] in 0..1000 of the view."""
        return self.to_image(rectangle(self.box_pixels(box)))

    def box_from_original(self, box: Box) -> tuple[int, int, int, int]:
        """The policy's box in 0..1000 around a box (left, top, right, bottom) of the original, clipped to the view."""
        units = self.to_view(rectangle(box)) / (self.width, self.height) * POLICY_UNITS
        low, high = np.clip(np.rint([units.min(0), units.max(0)]), 0, POLICY_UNITS).astype(int).tolist()
        return low[0], low[1], high[0], high[1]


@dataclass(frozen=True)
class ViewConfig:
    """Sizes of views, at least 1, for a model whose visual token covers `multiple` x `multiple` pixels.

    The defaults are for Qwen3-VL-4B: a scene of at most 512 visual tokens, other views of at most 256.

    Attributes:
      multiple: pixels of the side of a visual token; sides of views are multiples of it.
      scene_min_pixels, scene_max_pixels: pixels of the view of a whole image.
      aligned_side: width and height of the aligned view of a face.
      zoom_min_pixels, zoom_max_pixels: pixels of a zoom.

    Raises:
      ValueError: no size satisfies the limits.
    """

    multiple: Count = 32
    scene_min_pixels: Count = 256 * 256
    scene_max_pixels: Count = 512 * 32 * 32
    aligned_side: Count = 256
    zoom_min_pixels: Count = 256 * 256
    zoom_max_pixels: Count = 256 * 32 * 32

    def __post_init__(self) -> None:
        check_fields(self)
        if self.aligned_side % self.multiple:
            raise FieldError(
                "aligned_side", f"is {self.aligned_side}; it must be a multiple of multiple ({self.multiple})"
            )
        fit_size(1, 1, multiple=self.multiple, min_pixels=self.scene_min_pixels, max_pixels=self.scene_max_pixels)
        fit_size(1, 1, multiple=self.multiple, min_pixels=self.zoom_min_pixels, max_pixels=self.zoom_max_pixels)

    @property
    def scene_max_tokens(self) -> int:
        """The most visual tokens of a scene."""
        return self.scene_max_pixels // self.multiple**2

    @property
    def view_max_tokens(self) -> int:
        """The most visual tokens of an aligned or zoomed view."""
        return max(self.aligned_side**2, self.zoom_max_pixels) // self.multiple**2


@lru_cache(maxsize=64)
def _sizes(multiple: int, min_pixels: int, max_pixels: int) -> NDArray[np.int64]:
    """Every allowed (height, width), int64 [N, 2]."""
    least, most = -(-min_pixels // multiple**2), max_pixels // multiple**2
    sizes = [
        (rows * multiple, columns * multiple)
        for rows in range(1, most + 1)
        for columns in range(max(1, -(-least // rows)), most // rows + 1)
        if max(rows, columns) <= _MAX_ASPECT * min(rows, columns)
    ]
    if not sizes:
        raise ValueError(f"no picture with sides in multiples of {multiple} has {min_pixels} to {max_pixels} pixels")
    return np.array(sizes)


def fit_size(height: float, width: float, *, multiple: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The size of the view of a `height` x `width` area: the area's own size if the limits allow it.

    Both sides are multiples of `multiple`, and their product lies in [`min_pixels`, `max_pixels`]. Of these sizes it is
    the nearest, in the logarithms of aspect and of scale, to the area scaled into the limits. Sides differ at most by a
    factor of 200, since Hugging Face's processor refuses more.

    Returns:
      (height, width) in pixels.

    Raises:
      ValueError: a side is not positive, or no size satisfies the limits.
    """
    if not (height > 0 and width > 0 and math.isfinite(height * width)):
        raise ValueError(f"cannot fit an area of height {height} and width {width}; both must be positive")
    sizes = _sizes(multiple, min_pixels, max_pixels)
    log_height, log_width = np.log(sizes).T
    aspect_error = log_width - log_height - math.log(width / height)
    scale_error = (log_width + log_height - math.log(min(max(height * width, min_pixels), max_pixels))) / 2
    best = sizes[int(np.argmin(aspect_error**2 + scale_error**2))]
    return int(best[0]), int(best[1])


def cut(image: NDArray[np.uint8], to_original: Affine, size: tuple[int, int], name: str = "") -> View:
    """Samples an image through an affine map.

    Each view pixel is the mean of a grid of bilinear samples, spaced at most one image pixel apart. So a view coarser
    than the image averages the area of its pixels and does not alias. (If a view pixel is more than four image pixels
    wide, the image is first averaged in whole blocks.) Everything outside the image is `GREY`.

    Args:
      image: uint8 [H, W, 3].
      to_original: float64 [2, 3], from pixel coordinates of the view to those of the image.
      size: (height, width) of the view in pixels.
      name: the view's name.

    Raises:
      ImageError: the image is no such array.
    """
    check_image(image)
    height, width = size
    scale = pitch(to_original)
    block = max(1, math.ceil(float(scale.min()) / _MAX_SAMPLES - 1e-9))
    samples_x, samples_y = (max(1, math.ceil(s / block - 1e-9)) for s in scale.tolist())
    corners = transform(to_original, rectangle((0.0, 0.0, width, height)))
    # The blocks lie on one grid for the whole image, so that views that overlap see the same averages.
    margin = block + 1
    width_height = np.array(image.shape[1::-1])
    left, top = (np.clip(corners.min(0) - margin, 0, width_height - 1) // block * block).astype(int)
    right, bottom = np.ceil(np.clip(corners.max(0) + margin, 1, width_height)).astype(int)
    part = Image.fromarray(np.ascontiguousarray(image[top:bottom, left:right]))
    if block > 1:
        part = part.reduce(block)
    local = (to_original - [[0, 0, left], [0, 0, top]]) / block
    local[:, 0] /= samples_x
    local[:, 1] /= samples_y
    sampled = part.transform(
        (width * samples_x, height * samples_y),
        Image.Transform.AFFINE,
        local.ravel().tolist(),
        Image.Resampling.BILINEAR,
        fillcolor=(GREY, GREY, GREY),
    )
    if samples_x * samples_y > 1:
        sampled = sampled.reduce((samples_x, samples_y))
    return View(np.array(sampled), to_original, name)


def scene_frame(height: int, width: int, config: ViewConfig) -> tuple[Affine, tuple[int, int]]:
    """The geometry of the view of a whole image: its map to the image and its (height, width)."""
    size = fit_size(
        height,
        width,
        multiple=config.multiple,
        min_pixels=config.scene_min_pixels,
        max_pixels=config.scene_max_pixels,
    )
    return np.array([[width / size[1], 0.0, 0.0], [0.0, height / size[0], 0.0]]), size


def magnify(to_original: Affine, box: Box, config: ViewConfig) -> tuple[Affine, tuple[int, int]]:
    """The geometry of a zoom into a box of a frame, at about the resolution of the original image.

    The box grows about its centre to the aspect of the zoom's size. The zoom's pixels are square in the original.

    Args:
      to_original: the frame's map to the original image.
      box: (x0, y0, x1, y1) in the frame, not empty.
      config: the limits of the size.

    Returns:
      The zoom's map to the original image and its (height, width).
    """
    scale = pitch(to_original)
    width, height = (box[2] - box[0]) * scale[0], (box[3] - box[1]) * scale[1]
    size = fit_size(
        height,
        width,
        multiple=config.multiple,
        min_pixels=config.zoom_min_pixels,
        max_pixels=config.zoom_max_pixels,
    )
    linear = to_original[:, :2] / scale * max(height / size[0], width / size[1])
    centre = transform(to_original, [[(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]])[0]
    offset = centre - linear @ [size[1] / 2, size[0] / 2]
    return np.column_stack([linear, offset]), size


def pitch(to_original: Affine) -> NDArray[np.float64]:
    """How many pixels of the original one pixel of the view spans, along the view's x and y, float64 [2]."""
    return np.hypot(to_original[0, :2], to_original[1, :2])


def transform(affine: Affine, points_Nx2: ArrayLike) -> NDArray[np.float64]:
    """Applies an affine map to points [N, 2]."""
    return np.asarray(points_Nx2, np.float64) @ affine[:, :2].T + affine[:, 2]


def compose(outer: Affine, inner: Affine) -> Affine:
    """The affine map that applies `inner`, then `outer`."""
    return np.column_stack([outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2] + outer[:, 2]])


def invert(affine: Affine) -> Affine:
    """The inverse affine map."""
    linear = np.linalg.inv(affine[:, :2])
    return np.column_stack([linear, -linear @ affine[:, 2]])


def rectangle(box: Box) -> NDArray[np.float64]:
    """The corners [4, 2] of a box (x0, y0, x1, y1), in order around it."""
    x0, y0, x1, y1 = box
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)


def polygon_area(corners_Nx2: NDArray[np.float64]) -> float:
    """The area of a simple polygon."""
    x, y = corners_Nx2.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def overlap_area(corners_Nx2: NDArray[np.float64], box: Box) -> float:
    """The area that a convex polygon [N, 2] shares with a box (x0, y0, x1, y1); Sutherland-Hodgman clipping."""
    polygon = [(float(x), float(y)) for x, y in corners_Nx2]
    for axis, sign, bound in ((0, 1, box[0]), (1, 1, box[1]), (0, -1, box[2]), (1, -1, box[3])):
        clipped = []
        for start, end in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            inside, beyond = sign * (start[axis] - bound), sign * (end[axis] - bound)
            if inside >= 0:
                clipped.append(start)
            if inside * beyond < 0:
                part = inside / (inside - beyond)
                clipped.append((start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])))
        polygon = clipped
    return polygon_area(np.array(polygon)) if len(polygon) > 2 else 0.0

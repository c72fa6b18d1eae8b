"""Draws a `FaceSpec`: a cluttered scene with one face, its landmarks and its box.

Flat shapes are drawn with PIL at twice the resolution and averaged down. Relief, light, furrows and skin texture
multiply the result. The face is drawn in its pose, by rotating points and not pixels, so that fine lines keep their
width and contrast.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter

from actfer_jax.data.datasets.synth_faces import wrinkles
from actfer_jax.data.datasets.synth_faces.geometry import FACE_HEIGHT, GROUPS, HAIRLINE, expressive_landmarks, smooth
from actfer_jax.data.datasets.synth_faces.patches import busy_map
from actfer_jax.data.datasets.synth_faces.world import Appearance, FaceSpec

Colour = tuple[int, int, int]


class Rendered(NamedTuple):
    """An image of one face.

    Attributes:
      image: uint8 [size, size, 3].
      landmarks: dlib's 68 points, float64 [68, 2], pixels.
      face_box: left, top, right, bottom of the landmarks, in pixels.
    """

    image: np.ndarray
    landmarks: np.ndarray
    face_box: tuple[float, float, float, float]


class _Frame(NamedTuple):
    """The place of face coordinates in the image.

    A face that is turned by an angle lies on a bowed sheet, x^2 / 2 behind its middle: x comes to x cos - x^2 / 2 sin.
    """

    scale: float
    cosine: float
    sine: float
    x: float
    y: float
    turn: float

    def to_pixels(self, points_Nx2: np.ndarray) -> np.ndarray:
        x, y = points_Nx2[..., 0], points_Nx2[..., 1] - (HAIRLINE + FACE_HEIGHT / 2)
        if self.turn:
            x = np.cos(self.turn) * x - np.sin(self.turn) * x**2 / 2
        return np.stack(
            [
                self.x + self.scale * (self.cosine * x - self.sine * y),
                self.y + self.scale * (self.sine * x + self.cosine * y),
            ],
            axis=-1,
        )

    def to_face(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dx, dy = (x - self.x) / self.scale, (y - self.y) / self.scale
        face_x, face_y = self.cosine * dx + self.sine * dy, -self.sine * dx + self.cosine * dy
        if self.turn:
            a, b = np.cos(self.turn), np.sin(self.turn)
            face_x = (a - np.sqrt(np.maximum(a * a - 2 * b * face_x, 0.0))) / b
        return face_x, face_y + HAIRLINE + FACE_HEIGHT / 2


class _Pen:
    """Draws shapes given in face units onto a canvas."""

    def __init__(self, canvas: Image.Image, to_canvas: Callable[[np.ndarray], np.ndarray], scale: float) -> None:
        self.canvas = canvas
        self.draw = ImageDraw.Draw(canvas)
        self.to_canvas = to_canvas
        self.scale = scale

    def points(self, points_Nx2: np.ndarray) -> list[tuple[float, float]]:
        return [(x, y) for x, y in self.to_canvas(np.asarray(points_Nx2, dtype=np.float64)).tolist()]

    def fill(self, points_Nx2: np.ndarray, colour: Colour) -> None:
        self.draw.polygon(self.points(points_Nx2), fill=colour)

    def line(self, points_Nx2: np.ndarray, colour: Colour, width: float) -> None:
        self.draw.line(self.points(points_Nx2), fill=colour, width=max(round(width * self.scale), 1), joint="curve")

    def disc(self, centre: np.ndarray, radius_x: float, radius_y: float, colour: Colour) -> None:
        self.fill(_ellipse(centre, radius_x, radius_y), colour)


_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 28)), np.sin(np.linspace(0, 2 * np.pi, 28))], axis=-1)


def _ellipse(centre: np.ndarray, radius_x: float, radius_y: float) -> np.ndarray:
    return np.asarray(centre) + _CIRCLE * (radius_x, radius_y)


def _colour(rgb: np.ndarray | tuple[float, float, float], factor: float = 1.0) -> Colour:
    r, g, b = (int(min(max(channel * factor, 0), 255)) for channel in rgb)
    return r, g, b


@cache
def _noise_tile() -> np.ndarray:
    """White noise of standard deviation 32, int16 [1024, 1024, 3]. Images use windows of it: drawing noise is slow."""
    noise = np.random.default_rng(20231).standard_normal((1024, 1024, 3), dtype=np.float32)
    return np.round(32 * noise).astype(np.int16)


@cache
def _blotch_tile() -> np.ndarray:
    """Smooth noise of unit variance, float32 [512, 512], wavelength a few cells."""
    noise = gaussian_filter(np.random.default_rng(20232).standard_normal((512, 512)), 1.0, mode="wrap")
    return (noise / noise.std()).astype(np.float32)


def _background(rng: np.random.Generator, size: int) -> Image.Image:
    """Clutter: a blurred mosaic with boxes, discs and bars in front, drawn at half the resolution."""
    half = size // 2

    def muted(colours: np.ndarray) -> np.ndarray:
        grey = colours.mean(axis=-1, keepdims=True)
        return grey + 0.45 * (colours - grey)

    mosaic = muted(rng.uniform(20, 235, (int(rng.integers(3, 6)), int(rng.integers(3, 6)), 3))).astype(np.uint8)
    scene = Image.fromarray(mosaic).resize((half, half), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(scene)
    for _ in range(int(rng.integers(8, 18))):
        x, y = rng.uniform(-0.1, 1.0, 2) * half
        w, h = rng.uniform(0.04, 0.35, 2) * half
        colour = _colour(muted(rng.uniform(10, 245, 3)))
        kind = rng.integers(3)
        if kind == 0:
            draw.rectangle((x, y, x + w, y + h), fill=colour)
        elif kind == 1:
            draw.ellipse((x, y, x + w, y + h), fill=colour)
        else:
            draw.line((x, y, x + 2 * (w - 0.15 * half), y + 2 * h), fill=colour, width=int(rng.integers(1, 6)))
    blurred = scene.filter(ImageFilter.BoxBlur(float(rng.uniform(0.3, 1.5)) * size / 512))
    return blurred.resize((size, size), Image.Resampling.BILINEAR)


def _outline(points: np.ndarray) -> np.ndarray:
    """The edge of the face: the jaw and a forehead, smoothed, [n, 2]."""
    jaw = points[GROUPS["jaw"]]
    right, left = jaw[16], jaw[0]
    arc = [(0.99, -0.22), (0.93, -0.42), (0.78, -0.60), (0.45, -0.73)]
    forehead = [(right[0] * x, y) for x, y in arc] + [(0.0, -0.77)] + [(left[0] * x, y) for x, y in reversed(arc)]
    return smooth(np.concatenate([jaw, forehead]), closed=True, steps=3)


def _draw_behind(pen: _Pen, points: np.ndarray, look: Appearance) -> None:
    """Shoulders, neck, hair behind the face, ears."""
    chin = points[8, 1]
    pen.fill(
        smooth(
            np.array(
                [
                    (-0.5, chin + 0.22),
                    (-1.5, chin + 0.5),
                    (-1.9, 6.0),
                    (1.9, 6.0),
                    (1.5, chin + 0.5),
                    (0.5, chin + 0.22),
                ]
            ),
            closed=True,
        ),
        _colour(look.clothes),
    )
    pen.fill(
        np.array([(-0.38, 0.6), (0.38, 0.6), (0.42, chin + 0.22), (0.0, chin + 0.42), (-0.42, chin + 0.22)]),
        _colour(look.skin, 0.68),
    )
    volume = look.hair_volume
    hair = _colour(look.hair)
    if look.hair_style != 4:
        pen.fill(_ellipse(np.array([0.0, -0.28]), 0.80 + 0.08 * volume, 0.70 + 0.10 * volume), hair)
    if look.hair_style in (1, 3):
        length = 0.75 + 0.5 * volume
        for side in (-1.0, 1.0):
            pen.fill(
                smooth(
                    np.array([(side * 0.6, -0.6), (side * 0.86, -0.1), (side * 0.84, length), (side * 0.58, length)]),
                    closed=True,
                ),
                hair,
            )
    if look.hair_style in (0, 2, 4):
        for side in (-1.0, 1.0):
            pen.disc(np.array([side * points[15, 0] * 1.02, 0.16]), 0.075, 0.15, _colour(look.skin, 0.82))


def _draw_hairline(pen: _Pen, points: np.ndarray, look: Appearance) -> None:
    """Hair in front of the forehead, always above the brows."""
    if look.hair_style == 4:
        return
    edge = points[16, 0]
    part = (-0.3, 0.0, 0.3, -0.15)[look.hair_style]
    top = [
        (-edge * 1.12, -0.15),
        (-edge * 1.1, -0.62),
        (-0.55, -0.95),
        (0.0, -1.05),
        (0.55, -0.95),
        (edge * 1.1, -0.62),
        (edge * 1.12, -0.15),
    ]
    low = [
        (edge * 0.99, -0.24),
        (edge * 0.86, -0.50),
        (part + 0.22, -0.66),
        (part, -0.72),
        (part - 0.22, -0.66),
        (-edge * 0.86, -0.50),
        (-edge * 0.99, -0.24),
    ]
    pen.fill(smooth(np.array(top + low), closed=True, steps=4), _colour(look.hair, 1.06))
    for x in np.linspace(-0.5, 0.5, 7):
        pen.line(np.array([(x * 0.5, -1.0), (x * 1.05, -0.72 + 0.2 * abs(x))]), _colour(look.hair, 1.3), 0.010)


def _draw_eye(pen: _Pen, eye: np.ndarray, spec: FaceSpec) -> None:
    """One eye from its six landmarks, which run left to right along the upper lid and back along the lower."""
    look = spec.appearance
    skin = np.array(look.skin)
    edge = smooth(eye, closed=True, steps=5)
    openness = (eye[4:6, 1].mean() - eye[1:3, 1].mean()) / 0.10
    if openness > 0.2:
        centre = np.array([eye[:, 0].mean(), 0.0]) + (spec.gaze[0] * 0.02, spec.gaze[1] * 0.008)
        # White, iris and pupil are drawn on a small canvas, and pasted through a mask of the lids' opening.
        outline = pen.to_canvas(edge)
        left, top = np.floor(outline.min(axis=0)).astype(int)
        right, bottom = np.ceil(outline.max(axis=0)).astype(int) + 1
        ball = Image.new("RGB", (int(right - left), int(bottom - top)), _colour((226, 222, 218)))
        inner = _Pen(ball, lambda points: pen.to_canvas(points) - (left, top), pen.scale)
        inner.disc(centre, 0.064, 0.064, _colour(look.iris, 0.55))
        inner.disc(centre, 0.054, 0.054, _colour(look.iris))
        inner.disc(centre, 0.026, 0.026, (12, 10, 10))
        inner.disc(centre + (-0.018, -0.02), 0.011, 0.011, (250, 250, 250))
        mask = Image.new("L", ball.size, 0)
        ImageDraw.Draw(mask).polygon([(x, y) for x, y in (outline - (left, top)).tolist()], fill=255)
        pen.canvas.paste(ball, (int(left), int(top)), mask)
    lid = smooth(eye[:4], closed=False, steps=5)
    pen.line(lid, _colour(skin * 0.22), 0.026)
    pen.line(smooth(eye[[3, 4, 5, 0]], closed=False, steps=4), _colour(skin * 0.58), 0.012)
    crease = lid + (0.0, -0.034 - 0.010 * min(max(1.3 - openness, 0.0), 1.0))
    pen.line(crease[2:-2], _colour(skin * 0.70), 0.012)


def _draw_brow(pen: _Pen, brow: np.ndarray, look: Appearance, inner_first: bool) -> None:
    curve = smooth(brow, closed=False, steps=4)
    t = np.linspace(0, 1, len(curve)) if inner_first else np.linspace(1, 0, len(curve))
    half = (0.030 * (1 - t) ** 0.5 + 0.010) * look.brow_thickness
    # The landmarks run along the middle of the hair.
    up, down = curve - np.stack([0 * half, half], -1), curve + np.stack([0 * half, 0.8 * half], -1)
    pen.fill(
        np.concatenate([up, down[::-1]]), _colour(np.minimum(np.array(look.hair) * 0.8, np.array(look.skin) * 0.5))
    )


def _draw_nose(pen: _Pen, nose: np.ndarray, look: Appearance) -> None:
    skin = np.array(look.skin)
    for wing, hole, side in ((nose[4], nose[5], -1.0), (nose[8], nose[7], 1.0)):
        pen.line(
            smooth(
                np.array([wing + (side * -0.01, -0.085), wing + (side * 0.022, -0.03), wing + (side * 0.008, 0.012)]),
                closed=False,
            ),
            _colour(skin * 0.62),
            0.016,
        )
        pen.disc((hole + wing) / 2 + (side * -0.012, 0.002), 0.036, 0.017, _colour(skin * 0.26))
    pen.line(smooth(nose[[5, 6, 7]] + (0, 0.012), closed=False), _colour(skin * 0.66), 0.012)


def _draw_mouth(pen: _Pen, mouth: np.ndarray, spec: FaceSpec, strengths: dict[int, float]) -> None:
    look = spec.appearance
    skin = np.array(look.skin)
    red = skin * (1 - look.lips) + look.lips * np.array([0.78, 0.42, 0.42]) * skin.mean() * 1.05
    outer, inner = mouth[:12], mouth[12:]
    upper = np.concatenate([smooth(outer[:7], closed=False, steps=4), smooth(inner[4::-1], closed=False, steps=4)])
    lower = np.concatenate(
        [
            smooth(outer[[6, 7, 8, 9, 10, 11, 0]], closed=False, steps=4),
            smooth(inner[[0, 7, 6, 5, 4]], closed=False, steps=4),
        ]
    )
    hole = np.concatenate(
        [smooth(inner[:5], closed=False, steps=4), smooth(inner[[4, 5, 6, 7, 0]], closed=False, steps=4)]
    )
    opening = inner[6, 1] - inner[2, 1]
    if opening > 0.02:
        pen.fill(hole, (48, 18, 20))
        # Teeth hang from the upper lip. In a wide jaw drop the mouth is dark below them.
        depth = min(0.045, 0.6 * opening)
        teeth = smooth(inner[:5], closed=False, steps=4)[3:-3]
        pen.fill(
            np.concatenate([teeth, teeth[::-1] + (0.0, depth)]),
            _colour((232 * look.teeth, 228 * look.teeth, 216 * look.teeth)),
        )
        if strengths.get(26, 0) + strengths.get(27, 0) > 0.3:
            pen.disc(inner[6] + (0.0, -0.15 * opening), 0.11, 0.25 * opening, (150, 70, 74))
    pen.fill(upper, _colour(red * 0.86))
    pen.fill(lower, _colour(red))
    if opening <= 0.03:
        pen.line(smooth(inner[:5], closed=False, steps=4), _colour(skin * 0.30), 0.015)
    if 19 in strengths:
        pen.disc(
            inner[6] + (0.0, 0.02 + 0.05 * strengths[19]), 0.10, 0.05 + 0.07 * strengths[19], _colour((198, 96, 100))
        )
        pen.line(np.array([inner[6], inner[6] + (0.0, 0.10 * strengths[19])]), _colour((160, 66, 72)), 0.012)
    if 32 in strengths:
        pen.fill(
            np.array(
                [(-0.09, 0.0), (0.09, 0.0), (0.08, 0.02 + 0.035 * strengths[32]), (-0.08, 0.02 + 0.035 * strengths[32])]
            )
            + inner[2],
            (232, 228, 216),
        )


def _draw_glasses(pen: _Pen, points: np.ndarray, look: Appearance) -> None:
    if look.glasses == 0:
        return
    frame = _colour((34, 30, 32)) if look.glasses == 1 else _colour((120, 96, 70))
    width = 0.020 if look.glasses == 1 else 0.014
    for side in (-1.0, 1.0):
        centre = np.array([side * 0.325, 0.03])
        lens = (
            centre + _CIRCLE * (0.215, 0.155)
            if look.glasses == 2
            else smooth(centre + np.array([(-0.21, -0.11), (0.21, -0.11), (0.20, 0.13), (-0.20, 0.13)]), closed=True)
        )
        pen.line(np.concatenate([lens, lens[:1]]), frame, width)
        outer = points[16 if side > 0 else 0]
        pen.line(np.array([centre + (side * 0.215, -0.03), (outer[0] * 0.99, -0.04)]), frame, width)
    pen.line(smooth(np.array([(-0.115, 0.0), (0.0, -0.025), (0.115, 0.0)]), closed=False), frame, width)


def _shading(frame: _Frame, blobs: np.ndarray, light: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    """Relative brightness, float32 `shape`, computed on every fourth pixel and interpolated."""
    height, width = shape
    rows, columns = -(-height // 4), -(-width // 4)
    y, x = np.mgrid[:rows, :columns].astype(np.float32) * 4 + 1.5
    face_x, face_y = frame.to_face(x.ravel(), y.ravel())
    b = blobs.astype(np.float32)
    # Squared distances to all blobs as one product: ((x - a) / w)^2 + ((y - b) / h)^2 expanded.
    terms = np.stack([face_x**2, face_x, face_y**2, face_y, np.ones_like(face_x)])
    wx, wy = 1 / b[:, 2] ** 2, 1 / b[:, 3] ** 2
    exponent = (
        np.stack([wx, -2 * wx * b[:, 0], wy, -2 * wy * b[:, 1], wx * b[:, 0] ** 2 + wy * b[:, 1] ** 2], axis=1) @ terms
    )
    relief = b[:, 4] @ np.exp(-np.clip(exponent, 0, 30))
    shade = relief + light[0] * face_x + light[1] * face_y
    coarse = Image.fromarray(shade.reshape(rows, columns).astype(np.float32))
    return np.asarray(coarse.resize((columns * 4, rows * 4), Image.Resampling.BILINEAR))[:height, :width]


def _texture(rng: np.random.Generator, amount: float, cell: float, shape: tuple[int, int]) -> np.ndarray:
    """Blotches of skin, float32 `shape`; `cell` is the size of a cell of the smooth noise in pixels."""
    rows, columns = int(shape[0] / cell) + 2, int(shape[1] / cell) + 2
    top, left = rng.integers(0, 512 - rows), rng.integers(0, 512 - columns)
    patch = Image.fromarray(_blotch_tile()[top : top + rows, left : left + columns])
    grown = patch.resize((round(columns * cell), round(rows * cell)), Image.Resampling.BILINEAR)
    return amount * np.asarray(grown)[: shape[0], : shape[1]]


def render(spec: FaceSpec, size: int = 512) -> Rendered:
    """Draws a face into a scene of `size` x `size` pixels; a pure function of its arguments."""
    # Separate streams: a change of lines does not change the background and the noise.
    behind, on_lines, on_skin, on_patch = np.random.default_rng(spec.texture_seed).spawn(4)
    scene = _background(behind, size)
    if spec.other is not None:
        _draw_face(scene, spec.other, size, *np.random.default_rng(spec.other.texture_seed).spawn(3))
    landmarks = _draw_face(scene, spec, size, on_lines, on_skin, on_patch)

    look = spec.appearance
    gain = [look.exposure * channel for channel in look.tint]
    lit = scene.point([min(round(g * value), 255) for g in gain for value in range(256)])
    dy, dx = on_skin.integers(0, 1025 - size, 2)
    noise = (_noise_tile()[dy : dy + size, dx : dx + size] * np.int16(round(8 * look.noise))) >> 8
    image = np.clip(np.asarray(lit) + noise, 0, 255).astype(np.uint8)

    (x0, y0), (x1, y1) = landmarks.min(axis=0), landmarks.max(axis=0)
    return Rendered(image, landmarks, (float(x0), float(y0), float(x1), float(y1)))


def _draw_face(
    scene: Image.Image,
    spec: FaceSpec,
    size: int,
    on_lines: np.random.Generator,
    on_skin: np.random.Generator,
    on_patch: np.random.Generator,
) -> np.ndarray:
    """Draws a person into a scene of `size` x `size` pixels; returns the landmarks in pixels."""
    look, unit = spec.appearance, size / 512
    strengths = {au: intensity for au, intensity in spec.aus.items() if au not in spec.fine}
    face = expressive_landmarks(spec.shape, strengths, side=spec.side, asymmetry=spec.asymmetry)
    angle, turn = np.deg2rad((spec.pose.angle, spec.pose.turn)).tolist()
    scale = spec.pose.height * unit / FACE_HEIGHT
    x, y = spec.pose.x * unit, spec.pose.y * unit
    frame = _Frame(scale, float(np.cos(angle)), float(np.sin(angle)), x, y, turn)

    _draw_behind(_Pen(scene, frame.to_pixels, scale), face, look)

    extent = frame.to_pixels(
        np.array([(-0.95, -1.1), (0.95, -1.1), (0.95, face[8, 1] + 0.08), (-0.95, face[8, 1] + 0.08)])
    )
    left, top = np.clip(np.floor(extent.min(axis=0)).astype(int), 0, size - 1).tolist()
    right, bottom = np.clip(np.ceil(extent.max(axis=0)).astype(int), 1, size).tolist()
    shape = (bottom - top, right - left)
    canvas = scene.crop((left, top, right, bottom)).resize((2 * shape[1], 2 * shape[0]), Image.Resampling.NEAREST)
    pen = _Pen(canvas, lambda points: 2 * (frame.to_pixels(points) - (left, top)), 2 * scale)
    outline = _outline(face)
    pen.fill(outline, _colour(look.skin))
    _draw_nose(pen, face[GROUPS["nose"]], look)
    _draw_mouth(pen, face[GROUPS["mouth"]], spec, strengths)
    for name in ("left_eye", "right_eye"):
        _draw_eye(pen, face[GROUPS[name]], spec)
    _draw_brow(pen, face[17:22], look, inner_first=False)
    _draw_brow(pen, face[22:27], look, inner_first=True)
    _draw_hairline(pen, face, look)

    local = frame._replace(x=frame.x - left, y=frame.y - top)
    factor = _shading(local, wrinkles.shading_blobs(face, strengths, spec.side), look.light, shape)
    where = (local.to_pixels, scale, shape)
    factor = factor - wrinkles.furrow_map(wrinkles.furrow_points(face, strengths, spec.side), *where)
    factor -= _fine_texture(spec, face, on_lines, on_patch, where)
    factor = factor + _texture(on_skin, look.blotches, 0.016 * scale, shape)
    inside = Image.new("L", (shape[1], shape[0]), 0)
    ImageDraw.Draw(inside).polygon([(x, y) for x, y in local.to_pixels(outline).tolist()], fill=255)
    factor = 1 + factor * (np.asarray(inside.filter(ImageFilter.BoxBlur(1))).astype(np.float32) / 255)
    patch = np.asarray(canvas.reduce(2), dtype=np.float32) * factor[..., None]
    shaded = Image.fromarray(np.clip(patch, 0, 255).astype(np.uint8))
    if look.glasses:
        shaded = shaded.resize((2 * shape[1], 2 * shape[0]), Image.Resampling.NEAREST)
        _draw_glasses(_Pen(shaded, pen.to_canvas, 2 * scale), face, look)
        shaded = shaded.reduce(2)
    scene.paste(shaded, (left, top))
    return frame.to_pixels(face)


def _fine_texture(
    spec: FaceSpec,
    face: np.ndarray,
    on_lines: np.random.Generator,
    on_patch: np.random.Generator,
    where: tuple[wrinkles.ToPixels, float, tuple[int, int]],
) -> np.ndarray:
    """Relative darkening by what only a zoom resolves: lines, pores, and the busy patch."""
    if spec.busy:
        return busy_map(
            face, spec.deciding_region, where, lines=bool(spec.fine), contrast=spec.line_contrast, rng=on_patch
        )
    lines = wrinkles.fine_map(wrinkles.line_points(face, spec.fine, on_lines), wrinkles.LINE_SIGMA, *where)
    pores = wrinkles.fine_map(wrinkles.pore_points(face, spec.pores, on_lines), wrinkles.PORE_SIGMA, *where)
    return np.asarray(spec.line_contrast * (lines + wrinkles.PORE_DEPTH * pores))

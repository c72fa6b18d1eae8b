"""Draws a sheet of every action unit at FACS intensities A to E and of every emotion, plain and subtle.

    python benchmarks/contact_sheet.py --out=docs/images/contact_sheet.png
    python benchmarks/contact_sheet.py --edition=2 --out=docs/images/contact_sheet_2.png

In the first edition's, the same person shows every action unit. Beside each subtle emotion stands its deciding region,
cut from the original pixels. In the second edition's, a row for each pair of emotions and region that tells them apart
has both emotions of one seed, each as the picture, the aligned view of the small policy, and its zoom into that region.
Below are faces of some strata.
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from absl import flags
from PIL import Image, ImageDraw, ImageFont
from places import check_places

from actfer_jax import cli
from actfer_jax.data.datasets.synth_faces import FaceSpec, Rendered, render, sample_face
from actfer_jax.data.datasets.synth_faces.second_world import CASES, face_of, strata
from actfer_jax.data.datasets.synth_faces.second_world import sample_face as sample_second
from actfer_jax.faces.align import aligned_frame, region_box
from actfer_jax.faces.detector import Face
from actfer_jax.faces.views import ViewConfig, cut, magnify
from actfer_jax.facs import AU_NAMES, EMOTIONS, REGION_LANDMARKS
from actfer_jax.outputs import write_file

_EDITION = flags.DEFINE_enum("edition", "1", ["1", "2"], "Of the rendered faces.")
_OUT = flags.DEFINE(cli.PathFlag(), "out", "docs/images/contact_sheet.png", "The PNG file to write.")

DEMO_VIEWS = ViewConfig(
    multiple=32,
    scene_min_pixels=2048,
    scene_max_pixels=9216,
    aligned_side=64,
    zoom_min_pixels=2048,
    zoom_max_pixels=6144,
)
THUMB = 92
BLOCKS = 3
LABEL = 26
INK, PAPER = (30, 30, 30), (250, 250, 250)


def _frontal(spec: FaceSpec) -> FaceSpec:
    return replace(spec, pose=replace(spec.pose, x=256.0, y=256.0, height=300.0, angle=0.0))


def _one_au(person: FaceSpec, au: int, intensity: float) -> FaceSpec:
    aus = {au: intensity}
    if au in (19, 32):  # Tongue and bitten lip show through parted lips only.
        aus[25] = 0.6
    return replace(person, emotion="neutral", aus=aus, fine=frozenset(), subtle=False, deciding_region="", side="")


def _square(picture: Rendered, points: np.ndarray, room: float, side: int) -> Image.Image:
    low, high = points.min(axis=0), points.max(axis=0)
    centre, half = (low + high) / 2, (high - low).max() / 2 * room
    (x0, y0), (x1, y1) = (centre - half).tolist(), (centre + half).tolist()
    return Image.fromarray(picture.image).resize((side, side), Image.Resampling.LANCZOS, box=(x0, y0, x1, y1))


def _whole_face(picture: Rendered, side: int) -> Image.Image:
    return _square(picture, picture.landmarks[:27], 1.12, side)


def action_unit_sheet(person: FaceSpec) -> Image.Image:
    """One strip of five intensities for each action unit, in `BLOCKS` columns."""
    aus = list(AU_NAMES)
    rows = -(-len(aus) // BLOCKS)
    width, height = 5 * THUMB + 12, THUMB + LABEL
    sheet = Image.new("RGB", (BLOCKS * width, rows * height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, au in enumerate(aus):
        left, top = number // rows * width, number % rows * height
        draw.text((left + 4, top + 5), f"AU{au} {AU_NAMES[au]}, A to E", INK, font)
        for step in range(5):
            picture = render(_one_au(person, au, (step + 1) / 5))
            sheet.paste(_whole_face(picture, THUMB), (left + step * THUMB, top + LABEL))
    return sheet


def emotion_sheet(width: int) -> Image.Image:
    """Each emotion: three plain faces, then a subtle one and its deciding region."""
    side = width // 2 // 5 - 4
    height = side + LABEL
    sheet = Image.new("RGB", (width, -(-len(EMOTIONS) // 2) * height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, emotion in enumerate(EMOTIONS):
        left, top = number % 2 * (width // 2), number // 2 * height
        draw.text((left + 4, top + 5), f"{emotion}: three plain, one subtle and its deciding region", INK, font)
        plain = [_frontal(sample_face((90, number, k), emotion=emotion, subtle=False)) for k in range(3)]
        tiles = [_whole_face(render(spec), side) for spec in plain]
        spec = _frontal(sample_face((91, number), emotion=emotion, subtle=True))
        picture = render(spec)
        tiles.append(_whole_face(picture, side))
        tiles.append(_square(picture, picture.landmarks[list(REGION_LANDMARKS[spec.deciding_region])], 1.25, side))
        for k, tile in enumerate(tiles):
            sheet.paste(tile, (left + k * (side + 2), top + LABEL))
    return sheet


def _view(picture: Rendered, region: str) -> Image.Image:
    """The aligned view of the small policy, or its zoom into a region."""
    face = Face(picture.face_box, 1.0, picture.landmarks)
    frame, size = aligned_frame(face, DEMO_VIEWS.aligned_side), (DEMO_VIEWS.aligned_side,) * 2
    if region:
        frame, size = magnify(frame, region_box(face, region, frame), DEMO_VIEWS)
    return Image.fromarray(cut(picture.image, frame, size).pixels)


def second_sheet() -> Image.Image:
    """Each pair by each region that decides it, and each stratum."""
    names = ("two_faces", "off_centre", "small", "turned", "glasses")
    half, height, side = 640, 192 + LABEL, 192
    sheet = Image.new("RGB", (2 * half, (len(CASES) + 1) * height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, case in enumerate(CASES):
        seeds = ((92, row, i) for i in range(100))
        faces = ((seed, sample_second(seed, emotion=case.emotion, subtle=True)) for seed in seeds)
        seed = next(seed for seed, spec in faces if spec.deciding_region == case.region)
        for column, emotion in enumerate(case.pair):
            left, top = column * half, row * height
            spec = sample_second(seed, emotion=emotion, subtle=True)
            shown = "AU{}".format(*spec.fine) if spec.fine else f"no AU{case.au}"
            draw.text((left + 4, top + 5), f"{emotion}, decided by the {case.region}: {shown}", INK, font)
            picture = render(spec)
            aligned, zoom = _view(picture, "").resize((side, side), 0), _view(picture, case.region)
            scale = min(240 / zoom.width, side / zoom.height)
            zoom = zoom.resize((round(zoom.width * scale), round(zoom.height * scale)), 0)
            tiles = (Image.fromarray(picture.image).resize((side, side)), aligned, zoom)
            for tile, x in zip(tiles, (0, side + 2, 2 * side + 4), strict=True):
                sheet.paste(tile, (left + x, top + LABEL))
    for column, name in enumerate(names):
        left, top = column * 2 * half // len(names), len(CASES) * height
        spec = next(spec for spec in map(partial(face_of, "validation"), range(1000)) if name in strata(spec))
        draw.text((left + 4, top + 5), f"{spec.emotion}, {name}", INK, font)
        sheet.paste(Image.fromarray(render(spec).image).resize((side, side)), (left, top + LABEL))
    return sheet


def first_sheet() -> Image.Image:
    """Every action unit and every emotion."""
    person = _frontal(sample_face(32, emotion="neutral", subtle=False))
    person = replace(person, appearance=replace(person.appearance, glasses=0))
    action_units = action_unit_sheet(person)
    parts = [action_units, emotion_sheet(action_units.width)]
    sheet = Image.new("RGB", (parts[0].width, sum(part.height for part in parts) + 10), PAPER)
    sheet.paste(parts[0], (0, 0))
    sheet.paste(parts[1], (0, parts[0].height + 10))
    return sheet


def main(argv: Sequence[str]) -> None:
    del argv
    check_places(png=_OUT.value)
    sheet = first_sheet() if _EDITION.value == "1" else second_sheet()
    # A palette keeps the file small.
    data = io.BytesIO()
    sheet.quantize(128, dither=Image.Dither.NONE).save(data, "png", optimize=True)
    write_file(_OUT.value, data.getvalue())
    print(f"wrote {_OUT.value}, {sheet.width} x {sheet.height}")


if __name__ == "__main__":
    cli.run(main)

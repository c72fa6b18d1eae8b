"""Draws a sheet of every action unit at FACS intensities A to E and of every emotion, plain and subtle.

    python benchmarks/contact_sheet.py --out=docs/images/contact_sheet.png

The same person shows every action unit. Beside each subtle emotion stands its deciding region, cut from the
original pixels.
"""

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from absl import flags
from PIL import Image, ImageDraw, ImageFont
from places import check_places

from actfer_jax import cli
from actfer_jax.data.datasets.synth_faces import FaceSpec, Rendered, render, sample_face
from actfer_jax.facs import AU_NAMES, EMOTIONS, REGION_LANDMARKS
from actfer_jax.outputs import write_file

_OUT = flags.DEFINE(cli.PathFlag(), "out", "docs/images/contact_sheet.png", "The PNG file to write.")

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


def main(argv: Sequence[str]) -> None:
    del argv
    check_places(png=_OUT.value)
    person = _frontal(sample_face(32, emotion="neutral", subtle=False))
    person = replace(person, appearance=replace(person.appearance, glasses=0))
    action_units = action_unit_sheet(person)
    parts = [action_units, emotion_sheet(action_units.width)]
    sheet = Image.new("RGB", (parts[0].width, sum(part.height for part in parts) + 10), PAPER)
    sheet.paste(parts[0], (0, 0))
    sheet.paste(parts[1], (0, parts[0].height + 10))
    # A palette keeps the file small.
    data = io.BytesIO()
    sheet.quantize(128, dither=Image.Dither.NONE).save(data, "png", optimize=True)
    write_file(_OUT.value, data.getvalue())
    print(f"wrote {_OUT.value}, {sheet.width} x {sheet.height}")


if __name__ == "__main__":
    cli.run(main)

"""Faces that another detector found, read from JSON lines into a face store."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actfer_jax.errors import UserError
from actfer_jax.faces.detector import Face
from actfer_jax.faces.images import ImageError, load_image
from actfer_jax.faces.landmarks import LANDMARKS, LandmarkModel, five_points
from actfer_jax.faces.store import FaceStore

_KEYS = ("image", "box", "score", "landmarks")


def import_detections(detections: Path, images: Path, store: FaceStore, landmarks: str | None = None) -> str:
    """Reads faces into a store, by the content of their images. What is there of the same images is replaced.

    Each line is an object: `image` (a path in `images`), `box` ([left, top, right, bottom]), `score`, and `landmarks`:
    68 points, or 5 (left eye, right eye, nose, left and right corner of the mouth, as InsightFace and RetinaFace give
    them), from which the 68 are found. Coordinates are pixels of the upright image. An image with several faces has
    several lines.

    Args:
      detections: the file of JSON lines.
      images: the directory of the images.
      landmarks: the landmark model for lines with 5 points; by default the installed one.

    Returns:
      What was imported, in a line.

    Raises:
      UserError: a line or an image cannot be used. Lines are checked before anything is imported.
      OSError: the file cannot be read, or the store cannot be written.
    """
    model = LandmarkModel.find(landmarks)
    lines: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for number, line in enumerate(detections.read_bytes().splitlines(), start=1):
        where = f"{detections}:{number}"
        if line.strip():
            record = _record(line, where)
            lines[record["image"]].append((where, record))
    if not lines:
        raise UserError(f"{detections} has no lines; give one JSON object a face, with {', '.join(_KEYS)}")
    for name, records in lines.items():
        try:
            image = load_image(images / name)
        except ImageError as error:
            raise UserError(f"{records[0][0]}: {error}") from error
        store.add_imported(image, tuple(_face(record, where, image, model) for where, record in records))
    faces = sum(map(len, lines.values()))
    return f"{faces} faces in {len(lines)} images imported into {store.path}; name 'imported' in config.faces.steps"


def _record(line: bytes, where: str) -> dict[str, Any]:
    """A line with its values checked for what can be checked without the image."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); give one object a line") from error
    if not isinstance(record, dict) or set(record) != set(_KEYS):
        raise UserError(f"{where}: give an object with the keys {', '.join(_KEYS)}, and no others")
    if not isinstance(record["image"], str):
        raise UserError(f"{where}: image is {record['image']!r}; give the path of a picture")
    _numbers(record, "score", where, ())
    left, top, right, bottom = _numbers(record, "box", where, (4,)).tolist()
    if not (left < right and top < bottom):
        raise UserError(f"{where}: box is {record['box']}; give [left, top, right, bottom] in pixels")
    points = _numbers(record, "landmarks", where, (5, 2), (LANDMARKS, 2))
    left_eye, right_eye, _, *mouth = points if len(points) == 5 else five_points(points)
    across, down = right_eye - left_eye, np.mean(mouth, axis=0) - (left_eye + right_eye) / 2
    if across[0] * down[1] - across[1] * down[0] <= 0:
        raise UserError(
            f"{where}: the eyes of landmarks are not above the mouth, or left and right are exchanged; give "
            "left eye, right eye, nose, left and right corner of the mouth, left and right as in the picture"
        )
    return record


def _numbers(record: dict[str, Any], key: str, where: str, *shapes: tuple[int, ...]) -> NDArray[np.float64]:
    try:
        values = np.array(record[key], np.float64)
    except (TypeError, ValueError, OverflowError):
        values = np.array(np.nan)
    if values.shape not in shapes or not np.isfinite(values).all():
        wanted = {"score": "a number", "box": "four numbers"}.get(key, f"5 or {LANDMARKS} points [x, y]")
        raise UserError(f"{where}: {key} is {str(record[key])[:60]}; give {wanted}")
    return values


def _face(record: dict[str, Any], where: str, image: NDArray[np.uint8], model: LandmarkModel) -> Face:
    height, width = image.shape[:2]
    left, top, right, bottom = map(float, record["box"])
    if right <= 0 or bottom <= 0 or left >= width or top >= height or (right - left) * (bottom - top) < 4:
        raise UserError(
            f"{where}: box {record['box']} is not in {record['image']}, which has {width}x{height} pixels; give pixels "
            "of the upright picture"
        )
    points = np.array(record["landmarks"], np.float64)
    if len(points) != LANDMARKS:
        points = model.fit(image, model.place(points))
    return Face((left, top, right, bottom), float(record["score"]), points)

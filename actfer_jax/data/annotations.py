"""Action units that an annotator found, by the picture that they are about."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from actfer_jax import facs, plugins
from actfer_jax.agent.episode import Reference
from actfer_jax.data.annotators import AnnotationsConfig, Annotator, Face
from actfer_jax.data.errors import DataError
from actfer_jax.data.files import Problem, read_text, relative, table_rows

_AU_COLUMN = re.compile(r"AU_?0*(\d{1,3})(|_r|_c|_intensity)", re.IGNORECASE | re.ASCII)
PSEUDO = "AU labels by "
"""How the mark begins that a policy carries which learnt from an annotator."""


class Annotations(NamedTuple):
    """What an annotator says about pictures.

    Attributes:
      title: the annotator's.
      labels: by `picture_key`, where any are known: of each such action unit, whether it is present.
      problems: rows that cannot be read.
    """

    title: str
    labels: dict[str, dict[int, bool]]
    problems: list[Problem]


def load_annotator(config: AnnotationsConfig) -> Annotator:
    annotator: Annotator = plugins.load(config.FOLDER, config.name)
    return annotator


def read_annotations(config: AnnotationsConfig, folder: Path) -> Annotations:
    """Reads the files of an annotator.

    Of several faces in a picture the surest counts. What its rows, or models, do not agree on is not known.

    Args:
      folder: the data set's.

    Raises:
      DataError: there are no files, one is something else, or they have no action units.
    """
    annotator, path, problems = load_annotator(config), folder / config.file, list[Problem]()
    files = sorted(path.rglob("*.csv")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} has no CSV files; data.annotations.file is what {annotator.TITLE} wrote")
    faces: dict[str, dict[str, list[Face]]] = defaultdict(lambda: defaultdict(list))
    header: list[str] = []
    pictures = (config.picture_column,) if config.picture_column else annotator.PICTURE_COLUMNS
    for file in files:
        name = relative(file, folder)
        rows = table_rows(read_text(file), name, ",", problems)
        header = [cell.strip() for cell in next(rows, (0, []))[1]]
        if config.picture_column and config.picture_column not in header:
            raise DataError(
                f"{file} has no column {config.picture_column!r}; it has {', '.join(map(repr, header)) or 'none'}: say "
                "with data.annotations.picture_column which of them names the picture"
            )
        for line, cells in rows:
            row = dict(zip(header, map(str.strip, cells), strict=True))
            found = faces[_first(row, pictures) or name][_first(row, annotator.FRAME_COLUMNS)]
            try:
                face = annotator.read(row, config)
            except ValueError as error:
                problems.append(Problem(name, line, f"{error}; the row is left out"))
                continue
            found += [] if face is None else [face]
    labels = _by_picture(faces, config.path_parts)
    if not labels:
        raise DataError(
            f"{path} has no action units as {annotator.TITLE} writes them"
            + (f" ({problems[0]})" if problems else f"; it has the columns {', '.join(map(repr, header[:8]))} ...")
        )
    return Annotations(annotator.TITLE, labels, problems)


def _first(row: Mapping[str, str], columns: Iterable[str]) -> str:
    return next((row[column] for column in columns if row.get(column)), "")


def _by_picture(faces: Mapping[str, Mapping[str, list[Face]]], path_parts: int) -> dict[str, dict[int, bool]]:
    pooled = defaultdict[str, list[Face]](list)
    for picture, frames in faces.items():
        for frame, found in frames.items():
            # Several frames are those of a video.
            pooled[picture_key(picture, path_parts, frame if len(frames) > 1 else "")] += found
    labels = {}
    for key, found in pooled.items():
        best = max((face.confidence for face in found), default=0.0)
        labels[key] = agreed(one for face in found if face.confidence == best for one in face.labels)
    return {key: known for key, known in labels.items() if known}


def picture_key(path: str, parts: int, frame: str = "") -> str:
    """What a picture is called here: the last parts of its path, without ending, and without a number's leading zeros.

    Args:
      path: of the picture, or of the video that it is a frame of.
      parts: how many parts count.
      frame: the frame's number, which is a part of its own.
    """
    pure = PurePosixPath(path.replace("\\", "/"))
    names = [*pure.parts[:-1], pure.stem, *([frame] if frame else [])]
    if names[-1].isdecimal():
        names[-1] = names[-1].lstrip("0") or "0"
    return "/".join(names[-parts:])


def agreed(labels: Iterable[Mapping[int, bool]]) -> dict[int, bool]:
    """The action units that some of the labels know, and none of them otherwise."""
    said = defaultdict[int, set[bool]](set)
    for one in labels:
        for au, is_present in one.items():
            said[au].add(is_present)
    return {au: True in values for au, values in sorted(said.items()) if len(values) == 1}


def au_values(row: Mapping[str, str], kind: str = "") -> dict[int, float]:
    """The numbers in the columns of action units, such as `AU12` or `au_12`, that end in `kind`: "", "_r", "_c" or
    "_intensity". Those that are empty or NaN are not known; action units that are not in `facs.AU_NAMES` are left out.

    Raises:
      ValueError: one is no number.
    """
    values = {}
    for column in row:
        au, end = _au_column(column)
        if au in facs.AU_NAMES and end == kind and (value := number(row, column)) is not None:
            values[au] = value
    return values


@cache
def _au_column(column: str) -> tuple[int, str]:
    """The action unit of a column, and what its name ends in; (0, "") of another column."""
    match = _AU_COLUMN.fullmatch(column)
    return (int(match[1]), match[2].lower()) if match else (0, "")


def number(row: Mapping[str, str], column: str) -> float | None:
    """A cell's number; None where there is none, or NaN.

    Raises:
      ValueError: it is something else.
    """
    text = row.get(column, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{column} is {text[:40]!r}, no number") from None
    return None if math.isnan(value) else value


def present(values: Mapping[int, float], threshold: float) -> dict[int, bool]:
    """Whether each value reaches the threshold; NaN is not known."""
    return {au: value >= threshold for au, value in values.items() if not math.isnan(value)}


def coverage(references: Iterable[Reference]) -> dict[str, Any]:
    """How many references have action units, by who gave them, and of each unit how often it is known and present."""
    sources, known, seen = Counter[str](), Counter[int](), Counter[int]()
    for reference in references:
        if reference.aus is not None and reference.has_aus:
            sources[reference.aus_from or "people"] += 1
            known.update(facs.AU_NAMES.keys() if reference.known_aus is None else reference.known_aus)
            seen.update(reference.aus)
    return {
        "records": dict(sources),
        "rates": {f"AU{au}": {"known": known[au], "present": seen[au]} for au in sorted(known)},
    }


def coded_details(coded: Iterable[facs.CodedAU]) -> dict[str, dict[str, str]]:
    """Sides and intensities as `Reference.extra` keeps them; of two intensities of a unit, the larger."""
    sides, intensities = dict[str, str](), dict[str, str]()
    for au, side, intensity in sorted(coded):
        name = f"AU{au}"
        if side and side not in sides.get(name, ""):
            sides[name] = sides.get(name, "") + side
        if intensity:
            intensities[name] = max(intensities.get(name, ""), intensity)
    return {key: value for key, value in (("sides", sides), ("intensities", intensities)) if value}


def pseudo_mark(config: AnnotationsConfig) -> str:
    """What a policy that learnt from an annotator's labels carries among the data sets behind it."""
    annotator = load_annotator(config)
    return f"{PSEUDO}{annotator.TITLE} (itself trained on {', '.join(annotator.TRAINED_ON)})"

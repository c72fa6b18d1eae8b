"""AffectNet (Mollahosseini et al., 2017), its later release and AffectNet+ (Fard et al., 2024), read in place.

`release` "first", pictures as they were found, with tables (perhaps in Manually_Annotated_file_lists/):

    DIR/training.csv, validation.csv         subDirectory_filePath,face_x,...,expression,valence,arousal
    DIR/Manually_Annotated_Images/103/*.jpg

"later", faces of 224 x 224 pixels, with NumPy files of one value each:

    DIR/train_set/images/0.jpg               DIR/train_set/annotations/0_exp.npy, 0_val.npy, 0_aro.npy
    DIR/val_set/...

"plus", with a JSON file for each picture, in `annotations` or beside it (perhaps all below human_annotated/):

    DIR/train_set/images/0.jpg               DIR/train_set/annotations/0.json
    DIR/validation_set/...

Faces in `extra` are as the release has them. Landmarks are not read.
"""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np

from actfer_jax.agent.episode import Reference
from actfer_jax.config import between, one_of
from actfer_jax.data.errors import DataError
from actfer_jax.data.inventory import (
    ALL,
    Inventory,
    PictureConfig,
    Pictures,
    Problem,
    Record,
    counted,
    read_text,
    relative,
)
from actfer_jax.files import reason
from actfer_jax.progress import ProgressLine

LABELS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
"""In the order of their codes, from 0."""
_NO_EMOTION = ("none", "uncertain", "non-face")  # the codes from 8 on

_TRAIN = (74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750)
OFFICIAL: dict[str, dict[str, tuple[int, ...]]] = {
    "first": {"train": _TRAIN, "validation": (500,) * 8},
    "later": {"train": _TRAIN, "validation": (*(500,) * 7, 499)},
    "plus": {},
}
"""The numbers of pictures by release, split and code."""

_COLUMNS: tuple[str, ...] = (
    *("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "facial_landmarks", "expression"),
    *("valence", "arousal"),
)
_PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "first": {"train": ("training.csv",), "validation": ("validation.csv",)},
    "later": {"train": ("train_set",), "validation": ("val_set",)},
    "plus": {
        "train": ("train_set", "train"),
        "validation": ("validation_set", "val_set", "validation", "val"),
    },
}
_SUBSETS = ("easy", "challenging", "difficult")
_AGES = ((4, "age_0-3"), (20, "age_4-19"), (40, "age_20-39"), (70, "age_40-69"))
_PICTURES = frozenset((".jpg", ".jpeg", ".png"))

Line = TypeVar("Line", int, None)


@dataclass(frozen=True)
class Config(PictureConfig):
    """The choice of pictures.

    Attributes:
      release: "first", "later" or "plus".
      classes: 8, or 7 without contempt.
    """

    split: Annotated[str, one_of("train", "validation", ALL)] = "train"
    release: Annotated[str, one_of(*_PARTS)] = "first"
    classes: Annotated[int, between(7, 8)] = 8


def labels(config: Config) -> tuple[str, ...]:
    """The emotions in the order of their codes."""
    return LABELS[: config.classes]


def open_source(config: Config) -> Pictures:
    # The annotations of the training part of a later release are some 300,000 files.
    return Pictures(config, _inventory(config, [config.split] if config.split != ALL else list(_PARTS["first"])))


def inventory(config: Config) -> Inventory:
    """
    Raises:
      DataError: nothing of the release is there.
    """
    return _inventory(config, list(_PARTS["first"]))


def _inventory(config: Config, splits: Sequence[str]) -> Inventory:
    root = _root(config)
    records, problems, missing, official = list[Record](), list[Problem](), list[Path](), dict[str, int]()
    read = {"first": _first, "later": _later, "plus": _plus}[config.release]
    for split in splits:
        names = _PARTS[config.release][split]
        path = next((root / name for name in names if (root / name).exists()), None)
        if path is None:
            missing.append(root / names[0])
            problems.append(Problem(names[0], None, f"is not there; there is no {split} part"))
        else:
            records += read(config, path, split, problems)
    if len(missing) == len(splits):
        raise DataError(
            f"there is no {' and no '.join(map(str, missing))}; data.release says which release of AffectNet "
            "data.directory holds"
        )
    for split, counts in OFFICIAL[config.release].items():
        by_label = dict(zip(labels(config), counts, strict=False))
        official[split] = sum(by_label.values())
        official |= {f"{split}/{label}": count for label, count in by_label.items()}
    return Inventory(labels(config), records, problems, official)


def _root(config: Config) -> Path:
    below = {"first": "Manually_Annotated_file_lists", "plus": "human_annotated"}.get(config.release, "")
    return config.folder / below if (config.folder / below).is_dir() else config.folder


def _first(config: Config, path: Path, split: str, problems: list[Problem]) -> Iterator[Record]:
    file, lines, odd = relative(path, config.folder), dict[str, int](), defaultdict[str, list[int]](list)
    top = config.folder
    folders = (top / "Manually_Annotated_Images", top / "Manually_Annotated/Manually_Annotated_Images")
    pictures = next((folder for folder in (*folders, top / "Manually_Annotated") if folder.is_dir()), folders[0])
    reader, columns = csv.reader(read_text(path).splitlines()), _COLUMNS
    for cells in reader:
        line = reader.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if line == 1 and _COLUMNS[0] in cells:  # The validation part has been seen without a header.
            columns = tuple(cell.strip() for cell in cells)
            if missing := set(_COLUMNS) - set(columns):
                raise DataError(f"{path}, line 1: there is no column {min(missing)}; get the file anew")
            continue
        if line == 1 and len(cells) != len(columns):
            raise DataError(f"{path}, line 1: has {len(cells)} cells, not the {len(columns)} of AffectNet's lists")
        try:
            if len(cells) != len(columns):
                raise ValueError(f"has {len(cells)} cells, not {len(columns)}: the row is cut")
            row = dict(zip(columns, cells, strict=True))
            name, code = row["subDirectory_filePath"], int(row["expression"])
            if name in lines:
                raise ValueError(f"{name} is in line {lines[name]} already")
            lines[name] = line
            extra = _affect(float(row["valence"]), float(row["arousal"]))
            if (emotion := _emotion(code, config, odd, line)) is None:
                continue
            box = [int(float(row[f"face_{key}"])) for key in ("x", "y", "width", "height")]
        except ValueError as error:
            problems.append(Problem(file, line, f"{error}; left out"))
            continue
        if min(box[2:]) > 0:
            extra["face"] = box
        else:
            odd["have a face_width or face_height below 1: their faces are not known"].append(line)
        yield Record(name, pictures / name, Reference((), emotion=emotion, extra=extra), split)
    problems += counted(file, odd)


def _later(config: Config, path: Path, split: str, problems: list[Problem]) -> Iterator[Record]:
    left_out, progress, stems = defaultdict[str, list[None]](list), ProgressLine("annotations"), set[str]()
    files = sorted((path / "annotations").glob("*_exp.npy"), key=lambda file: (len(file.name), file.name))
    for done, file in enumerate(files, 1):
        progress(done, len(files))
        stem = file.name.removesuffix("_exp.npy")
        stems.add(stem)
        try:
            emotion = _emotion(int(_number(file)), config, left_out, None)
            values = (_number(file.with_name(f"{stem}_{what}.npy")) for what in ("val", "aro"))
            extra = {} if emotion is None else _affect(*values)
        except ValueError as error:
            problems.append(Problem(relative(file, config.folder), None, f"{error}; left out"))
            continue
        if emotion is not None:
            picture = path / "images" / f"{stem}.jpg"
            reference = Reference((), emotion=emotion, extra=extra)
            yield Record(relative(picture, config.folder), picture, reference, split)
    problems += counted(relative(path, config.folder), left_out, "pictures")
    problems += _unknown(config, (path / "images").glob("*"), stems)


def _number(file: Path) -> float:
    """The one value in a NumPy file: a number, or a text that is one.

    Raises:
      ValueError: the file cannot be read, or holds something else.
    """
    try:
        array = np.load(file, allow_pickle=False)
        return float(array.reshape(()).item())
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise ValueError(f"{file.name} holds no number ({reason(error)})") from error


def _plus(config: Config, path: Path, split: str, problems: list[Problem]) -> Iterator[Record]:
    pictures, left_out = defaultdict[str, list[Path]](list), defaultdict[str, list[None]](list)
    for picture in sorted(path.rglob("*")):
        if picture.suffix.lower() in _PICTURES:
            pictures[picture.stem].append(picture)
    apart = path.parent / "annotations" / path.name
    files = [*sorted(path.rglob("*.json")), *sorted(apart.rglob("*.json"))]
    progress = ProgressLine("annotations")
    for done, file in enumerate(files, 1):
        progress(done, len(files))
        there = pictures.get(file.stem, [])
        there = [picture for picture in there if picture.parent == file.parent] or there
        try:
            if len(there) != 1:
                raise ValueError(f"{len(there)} pictures have its name")
            values = _values(file)
            emotion = _emotion(int(values["humanlabel"]), config, left_out, None)
            if emotion is None:
                continue
            reference = Reference((), emotion=emotion, strata=_strata(values), extra=_details(values))
        except (ValueError, TypeError, KeyError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else str(error).removeprefix(f"{file}: ")
            problems.append(Problem(relative(file, config.folder), None, f"{what}; left out"))
            continue
        yield Record(relative(there[0], config.folder), there[0], reference, split)
    problems += counted(relative(path, config.folder), left_out, "pictures")
    every = (picture for there in pictures.values() for picture in there)
    problems += _unknown(config, every, {file.stem for file in files})


def _values(file: Path) -> dict[str, Any]:
    """The values of an annotation by key, in lower case and without punctuation; those of its metadata among them.

    Raises:
      ValueError: the file cannot be read, or is no JSON object.
    """
    try:
        value = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno} is no JSON ({error.msg})") from error
    values = _plain(value)
    return values | _plain(values.get("metadata", {}))


def _plain(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"is {str(value)[:40]!r}, not a JSON object")
    return {re.sub("[^a-z]", "", key.lower()): item for key, item in value.items()}


def _strata(values: dict[str, Any]) -> tuple[str, ...]:
    """How difficult the picture is, and gender, race and age of who is shown, as far as they are known.

    Raises:
      ValueError: the subset is none of three.
    """
    strata = list[str]()
    if (subset := values.get("subset")) is not None:
        if subset not in range(len(_SUBSETS)):
            raise ValueError(f"the subset is {subset!r}, not one of 0 to {len(_SUBSETS) - 1}")
        strata.append(_SUBSETS[subset])
    for value in (values.get("gender"), values.get("race", values.get("ethnicity"))):
        word = max(value, key=value.__getitem__) if isinstance(value, dict) and value else value
        if isinstance(word, str) and word.strip():
            strata.append(re.sub(r"\W+", "_", word.strip().lower()))
    age = values.get("age")
    if isinstance(age, int | float):
        strata.append(next((name for below, name in _AGES if age < below), "age_70_and_over"))
    return tuple(strata)


def _details(values: dict[str, Any]) -> dict[str, Any]:
    details = _affect(*(float(values.get(what, -2)) for what in ("valence", "arousal")))
    if (soft := values.get("softlabel")) is not None:
        if not isinstance(soft, list) or len(soft) != len(LABELS):
            raise ValueError(f"the soft label is {str(soft)[:40]!r}, not {len(LABELS)} numbers")
        details["soft_label"] = dict(zip(LABELS, map(float, soft), strict=True))
    return details


def _emotion(code: int, config: Config, left_out: dict[str, list[Line]], line: Line) -> str | None:
    """The emotion of a code; None, with the line in `left_out`, for one that is not asked for.

    Raises:
      ValueError: there is no such code.
    """
    words = (*LABELS, *_NO_EMOTION)
    if not 0 <= code < len(words):
        raise ValueError(f"the expression is {code}, not one of 0 to {len(words) - 1}")
    if code < config.classes:
        return LABELS[code]
    left_out[f"have the expression {words[code]}; left out"].append(line)
    return None


def _affect(valence: float, arousal: float) -> dict[str, Any]:
    """Both where they are known; -2 stands for unknown."""
    return {name: value for name, value in (("valence", valence), ("arousal", arousal)) if -1 <= value <= 1}


def _unknown(config: Config, pictures: Iterable[Path], stems: Collection[str]) -> list[Problem]:
    return [
        Problem(relative(picture, config.folder), None, "has no annotation; not used")
        for picture in sorted(pictures)
        if picture.stem not in stems and not picture.name.startswith(".")
    ]

"""FER2013 (Goodfellow et al., 2013) and the votes of FER+ on the same pictures (Barsoum et al., 2016), read in place.

    DIR/fer2013.csv                emotion,pixels,Usage: a label, 48 x 48 grey values, Training ...
    DIR/fer2013new.csv             Usage,Image name,neutral,happiness,...: the votes of FER+, with the same rows

or the pictures of FER+ in folders, which have no label of FER2013:

    DIR/FER2013Train/label.csv     fer0000000.png,"(0, 0, 48, 48)",4,0,0,1,...
    DIR/FER2013Train/fer0000000.png
    DIR/FER2013Valid/...           DIR/FER2013Test/...

PublicTest is the validation part, and PrivateTest the test part.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from actfer_jax import facs
from actfer_jax.agent.episode import Reference
from actfer_jax.config import one_of
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

FER2013 = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""In the order of their codes, from 0."""
FER_PLUS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
"""In the order of the columns of votes."""
_COLUMNS = (*FER_PLUS, "unknown", "NF")  # NF: no face

_COUNTS = {
    "train": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "validation": (467, 56, 496, 895, 653, 415, 607),
    "test": (491, 55, 528, 879, 594, 416, 626),
}
OFFICIAL = {
    "fer2013": {split: sum(counts) for split, counts in _COUNTS.items()}
    | {
        f"{split}/{label}": count
        for split, counts in _COUNTS.items()
        for label, count in zip(FER2013, counts, strict=True)
    },
    "most_votes": {"test": 3573},
    "majority": {},
}

_USAGES = {"training": "train", "publictest": "validation", "privatetest": "test"}
_FOLDERS = {"FER2013Train": "train", "FER2013Valid": "validation", "FER2013Test": "test"}
_SIDE = 48


@dataclass(frozen=True)
class Config(PictureConfig):
    """The choice of pictures.

    Attributes:
      labels: "fer2013", the seven of FER2013; "majority", those of FER+ for which its authors count a majority; or
        "most_votes", the one of eight emotions with most votes, the first of equals, as FERBench has it.
    """

    split: Annotated[str, one_of("train", "validation", "test", ALL)] = "train"
    labels: Annotated[str, one_of(*OFFICIAL)] = "majority"


@dataclass(frozen=True)
class PixelRow:
    """A picture that a table spells out (`data.inventory.Part`)."""

    file: Path
    line: int
    pixels: bytes

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"

    def read_bytes(self) -> bytes:
        return b"P5 %d %d 255\n" % (_SIDE, _SIDE) + self.pixels


class Votes(NamedTuple):
    """How ten people each saw a picture.

    Attributes:
      line: in the file of votes.
      usage: as the file calls the part; "" where the folder says it.
      name: of the picture; "" for a row that FER+ has thrown out.
      counts: of `FER_PLUS`, unknown, and no face.
    """

    line: int
    usage: str
    name: str
    counts: tuple[int, ...]


def labels(config: Config) -> tuple[str, ...]:
    """The emotions of FER2013 or of FER+, in their own order."""
    return FER2013 if config.labels == "fer2013" else FER_PLUS


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    """
    Raises:
      DataError: neither layout is there, or not with these labels; or the two tables do not belong together.
    """
    problems = list[Problem]()
    if (config.folder / "fer2013.csv").exists():
        records = list(_from_tables(config, problems))
    elif any((config.folder / name / "label.csv").exists() for name in _FOLDERS):
        if config.labels == "fer2013":
            raise DataError(f"{config.folder} has no fer2013.csv, which has the labels of FER2013; give data.labels")
        records = list(_from_folders(config, problems))
    else:
        raise DataError(
            f"{config.folder} has neither fer2013.csv nor FER2013Train/label.csv; data.directory must hold one of them"
        )
    return Inventory(labels(config), records, problems, OFFICIAL[config.labels])


def majority(counts: Sequence[int]) -> str | None:
    """The label for which FER+ counts a majority: single votes do not count, and more than half of the others must
    agree. None where they do not, or agree on "unknown" or "NF"."""
    counts = [count if count > 1 else 0 for count in counts]
    best = counts.index(max(counts))
    return FER_PLUS[best] if 2 * counts[best] > sum(counts) and best < len(FER_PLUS) else None


def most_votes(counts: Sequence[int]) -> str | None:
    """The emotion with most votes, the first of equals; None where no emotion has any."""
    counts = counts[: len(FER_PLUS)]
    return FER_PLUS[counts.index(max(counts))] if any(counts) else None


def _reference(votes: Votes, config: Config, left_out: dict[str, list[int]]) -> Reference | None:
    """What the votes say; None, with the line in `left_out`, where they give no label."""
    emotion = (majority if config.labels == "majority" else most_votes)(votes.counts)
    if not votes.name:
        left_out["have no name of a picture: FER+ has thrown them out; left out"].append(votes.line)
    elif emotion is None:
        what = "have no majority of votes" if config.labels == "majority" else "have no vote for an emotion"
        left_out[f"{what}; left out"].append(votes.line)
    else:
        given = {name: count for name, count in zip(_COLUMNS, votes.counts, strict=True) if count}
        return Reference((), emotion=emotion, extra={"votes": given})
    return None


def _from_tables(config: Config, problems: list[Problem]) -> Iterator[Record]:
    path, left_out = config.folder / "fer2013.csv", defaultdict[str, list[int]](list)
    votes = None if config.labels == "fer2013" else _table_of_votes(config)
    rows, count = _read(path), 0
    header = [cell.strip().lower() for cell in next(rows)[1]]
    if missing := {"emotion", "pixels", "usage"} - set(header):
        raise DataError(f"{path}, line 1: there is no column {min(missing)}; it must have emotion, pixels and Usage")
    for count, (line, cells) in enumerate(rows, 1):
        if votes is not None and count > len(votes):
            continue
        row = dict(zip(header, cells, strict=False))
        try:
            record = _record(path, line, row, votes[count - 1] if votes else None, left_out, config)
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            what = f"the row is cut: it has {len(cells)} cells of {len(header)}" if len(cells) < len(header) else error
            problems.append(Problem(path.name, line, f"{what}; the row is left out"))
        else:
            if record is not None:
                yield record
    problems += counted("fer2013new.csv", left_out)
    if votes is not None and len(votes) != count:
        less = min(len(votes), count)
        what = f"has {len(votes)} rows, and fer2013.csv {count}; what follows the first {less} is left out"
        problems.append(Problem("fer2013new.csv", None, what))


def _record(
    path: Path, line: int, row: dict[str, str], votes: Votes | None, left_out: dict[str, list[int]], config: Config
) -> Record | None:
    """The record of a row of fer2013.csv, or None where its votes give no label.

    Raises:
      ValueError: a cell cannot be used.
      DataError: the votes are of a row of another part.
    """
    usage = row.get("usage", "").strip()
    if votes is not None and not votes.usage.lower().startswith(usage.lower()):  # The last row may be cut.
        raise DataError(
            f"{path.with_name('fer2013new.csv')}, line {votes.line}: the Usage is {votes.usage!r}, and line {line} of "
            f"fer2013.csv has {usage!r}; the two files must have the same rows in the same order"
        )
    if usage.lower() not in _USAGES:
        raise ValueError(f"the Usage is {usage!r}, not Training, PublicTest or PrivateTest")
    picture = PixelRow(path, line, _pixels(row["pixels"]))
    if votes is None:
        name, reference = f"line_{line:05d}", Reference((), emotion=_emotion(row["emotion"]))
    elif (by_vote := _reference(votes, config, left_out)) is not None:
        name, reference = votes.name, by_vote
    else:
        return None
    return Record(name, picture, reference, _USAGES[usage.lower()])


def _table_of_votes(config: Config) -> list[Votes]:
    path = config.folder / "fer2013new.csv"
    rows = _read(path)
    if [cell.strip().lower() for cell in next(rows)[1]] != ["usage", "image name", *map(str.lower, _COLUMNS)]:
        raise DataError(f"{path}, line 1: the columns must be Usage, Image name, {', '.join(_COLUMNS)}")
    return [_votes(path, line, cells[0], cells[1:]) for line, cells in rows]


def _from_folders(config: Config, problems: list[Problem]) -> Iterator[Record]:
    for folder, split in _FOLDERS.items():
        path = config.folder / folder / "label.csv"
        if not path.exists():
            problems.append(Problem(folder, None, f"has no label.csv; there is no {split} part"))
            continue
        file, left_out, lines = relative(path, config.folder), defaultdict[str, list[int]](list), dict[str, int]()
        for line, cells in _read(path):
            one = _votes(path, line, "", [cells[0], *cells[2:]])
            if one.name in lines:
                problems.append(Problem(file, line, f"{one.name} is in line {lines[one.name]} already; left out"))
                continue
            if one.name:
                lines[one.name] = line
            if (reference := _reference(one, config, left_out)) is not None:
                yield Record(f"{folder}/{one.name}", path.parent / one.name, reference, split)
        problems += counted(file, left_out)
        for picture in sorted(path.parent.glob("*.png")):
            if picture.name not in lines:
                problems.append(Problem(relative(picture, config.folder), None, "no row names it; not used"))


def _read(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table that are not empty, each after its line.

    Raises:
      DataError: the file cannot be read, or is something else.
    """
    reader = csv.reader(read_text(path).splitlines())
    try:
        yield from ((reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error


def _votes(path: Path, line: int, usage: str, cells: Sequence[str]) -> Votes:
    """
    Raises:
      DataError: the row is no name with ten counts.
    """
    counts = [cell.strip() for cell in cells[1:]]
    if len(counts) != len(_COLUMNS) or not all(count.isdecimal() for count in counts):
        raise DataError(f"{path}, line {line}: the row does not have ten counts of votes; get the file anew")
    return Votes(line, usage.strip(), cells[0].strip(), tuple(map(int, counts)))


def _pixels(cell: str) -> bytes:
    """
    Raises:
      ValueError: the cell does not have 48 x 48 numbers from 0 to 255.
    """
    pixels = np.fromstring(cell, np.int32, sep=" ") if not cell.strip("0123456789 ") else np.zeros(0, np.int32)
    if len(pixels) != _SIDE**2 or pixels.max() > 255:
        raise ValueError(f"has {len(cell.split())} pixels, not {_SIDE} x {_SIDE} numbers from 0 to 255")
    return pixels.astype(np.uint8).tobytes()


def _emotion(cell: str) -> str:
    """The label of a code, or of a word, as some copies have it.

    Raises:
      ValueError: it is neither.
    """
    text = facs.normalise_emotion(cell)
    names = {str(code): label for code, label in enumerate(FER2013)}
    names |= {facs.normalise_emotion(label): label for label in FER2013}
    if text not in names:
        raise ValueError(f"the emotion is {cell!r}, not one of 0 to {len(FER2013) - 1}")
    return names[text]

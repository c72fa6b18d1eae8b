"""One's own pictures with a table: a CSV, TSV or JSON lines file, or Parquet files, with a row for each picture.

Columns, all but the first optional: `image` (the picture's path below the data set's directory), `emotion`, `aus` and
`known_aus` ("AU1 AU12L AU4C", "none"), `subject`, `split` (train, validation or test), `strata`. An empty cell is not
known, which differs from "none". Other columns are ignored. Where a table has subjects and no splits, the subjects are
divided by a seed; where it has neither, `split` must be "all".

In Parquet files, such as a data set on the Hugging Face hub has, the column `image` may hold the pictures themselves,
and the numbers of classes are read as their names. Without a column of splits, a file's name says its split.
"""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from actfer_jax import facs
from actfer_jax.agent.episode import Reference
from actfer_jax.config import FieldError, Seed, Share, one_of
from actfer_jax.data.annotations import coded_details
from actfer_jax.data.errors import DataError
from actfer_jax.data.files import json_rows, table_rows
from actfer_jax.data.inventory import (
    ALL,
    SPLITS,
    Inventory,
    PictureConfig,
    Pictures,
    Problem,
    Record,
    class_names,
    read_text,
    relative,
    split_subjects,
)
from actfer_jax.data.parquet import Embedded, column_names, read_rows

Row = dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """The names of the columns in the table."""

    image: str = "image"
    emotion: str = "emotion"
    aus: str = "aus"
    known_aus: str = "known_aus"
    subject: str = "subject"
    split: str = "split"
    strata: str = "strata"


@dataclass(frozen=True)
class Config(PictureConfig):
    """The choice of pictures.

    Attributes:
      file: the table, below `directory`; it ends in .csv, .tsv, .jsonl or .parquet. A pattern, such as
        "data/*.parquet", stands for several Parquet files.
      columns: how the table calls its columns.
      validation_share, test_share: shares of the subjects where the table has no splits; the rest is "train".
      split_seed: of that division.
    """

    split: Annotated[str, one_of("train", "validation", "test", ALL)] = "train"
    file: str = "labels.csv"
    columns: Columns = field(default_factory=Columns)
    validation_share: Share = 0.1
    test_share: Share = 0.2
    split_seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.file).suffix.lower() not in (".csv", ".tsv", ".jsonl", ".parquet"):
            raise FieldError("file", f"is {self.file!r}; it must end in .csv, .tsv, .jsonl or .parquet")
        if self.validation_share + self.test_share > 1:
            raise FieldError("test_share", f"is {self.test_share}; with validation_share it must be at most 1")


def labels(config: Config) -> tuple[str, ...]:
    """The emotions of the table, in lower case and alphabetical order."""
    return inventory(config).labels


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    records, problems, lines = list[Record](), list[Problem](), dict[str, int]()
    for file, line, row in _rows(config, problems):
        try:
            record = _record(row, config)
            if record.name in lines:
                raise ValueError(f"the image {record.name!r} is in line {lines[record.name]} already")
        except ValueError as error:
            problems.append(Problem(file, line, f"{error}; the row is left out"))
            continue
        lines[record.name] = line
        records.append(record)
    names = class_names(record.reference.emotion for record in records if record.reference.emotion)
    problems += [
        Problem(config.file, None, f"the emotion {word!r} is read as {name!r}")
        for word, name in sorted(names.items())
        if word.lower() != name
    ]
    subjects = {record.reference.extra["subject"] for record in records if "subject" in record.reference.extra}
    drawn: dict[str, str] = {}
    if subjects and not any(record.split for record in records):
        drawn = split_subjects(subjects, config.validation_share, config.test_share, config.split_seed)
    records = [
        dataclasses.replace(
            record,
            split=record.split or drawn.get(record.reference.extra.get("subject", ""), ""),
            reference=dataclasses.replace(record.reference, emotion=names.get(record.reference.emotion or "")),
        )
        for record in records
    ]
    return Inventory(tuple(sorted(set(names.values()))), records, problems)


def _rows(config: Config, problems: list[Problem]) -> Iterator[tuple[str, int, Row]]:
    """The rows of the table by its own column names, with the file and the line, from 1.

    Raises:
      DataError: the file is no table, or has no column of pictures.
    """
    path = config.folder / config.file
    if path.is_file():
        paths = [path]
    elif path.suffix.lower() != ".parquet" or not (paths := sorted(config.folder.glob(config.file))):
        raise DataError(f"there is no {path}; data.file is the name of the table")
    for path in paths:
        rows = _parquet_rows if path.suffix.lower() == ".parquet" else _text_rows
        for line, row in rows(path, config, problems):
            yield relative(path, config.folder), line, row


def _parquet_rows(path: Path, config: Config, problems: list[Problem]) -> Iterator[tuple[int, Row]]:
    there = column_names(path)
    _check_header(path, there, config)
    word = re.match("[a-z]*", path.stem.lower())
    split = word[0] if word is not None and word[0] in SPLITS and config.columns.split not in there else None
    for line, row in read_rows(path, vars(config.columns).values()):
        yield line, row if split is None else row | {config.columns.split: split}


def _check_header(path: Path, header: list[str], config: Config) -> None:
    if config.columns.image not in header:
        raise DataError(
            f"{path} has no column {config.columns.image!r}; it has {', '.join(map(repr, header)) or 'none'}: say "
            "with data.columns which of them is what"
        )


def _text_rows(path: Path, config: Config, problems: list[Problem]) -> Iterator[tuple[int, Row]]:
    text = read_text(path)
    if path.suffix.lower() == ".jsonl":
        yield from json_rows(text, config.file, problems)
        return
    rows = table_rows(text, config.file, "\t" if path.suffix.lower() == ".tsv" else ",", problems)
    header = [cell.strip() for cell in next(rows, (0, []))[1]]
    _check_header(path, header, config)
    for line, cells in rows:
        yield line, dict(zip(header, cells, strict=True))


def _record(row: Row, config: Config) -> Record:
    """
    Raises:
      ValueError: a cell cannot be read, or the row says nothing about its picture.
    """
    columns = config.columns
    subject, split = (_text(row, name) for name in (columns.subject, columns.split))
    embedded = row.get(columns.image)
    picture: Path | Embedded
    if isinstance(embedded, Embedded):
        name, picture = f"{relative(embedded.file, config.folder)}/{embedded.line}", embedded
    else:
        name = _text(row, columns.image)
        picture = config.folder / name
    if not name:
        raise ValueError(f"{columns.image} is empty")
    if split and split.lower() not in SPLITS:
        raise ValueError(f"{columns.split} is {split!r}; it must be train, validation or test")
    coded, known = _aus(row, columns.aus), _aus(row, columns.known_aus)
    aus = None if coded is None else frozenset(one.au for one in coded)
    known_aus = None if known is None else frozenset(one.au for one in known)
    if aus is not None and known_aus is not None and aus - known_aus:
        raise ValueError(f"{columns.aus} has {facs.format_aus(aus - known_aus)}, which {columns.known_aus} lacks")
    reference = Reference(
        labels=(),
        emotion=_text(row, columns.emotion) or None,
        aus=aus,
        known_aus=known_aus,
        strata=tuple(_words(row, columns.strata)),
        extra=coded_details(coded or []) | ({"subject": subject} if subject else {}),
    )
    if reference.emotion is None and not reference.has_aus and config.annotations is None:
        raise ValueError("neither the emotion nor any action unit is known")
    return Record(name, picture, reference, SPLITS[split.lower()] if split else "")


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if value is not None and not isinstance(value, str | int):
        raise ValueError(f"{column} is {value!r}; it must be a text")
    return "" if value is None else str(value).strip()


def _words(row: Row, column: str) -> list[str]:
    """The words of a cell, divided by blanks, commas or semicolons, or the items of a JSON list."""
    value = row.get(column)
    if isinstance(value, list):
        return [str(item) for item in value]
    return _text(row, column).replace(",", " ").replace(";", " ").split()


def _aus(row: Row, column: str) -> list[facs.CodedAU] | None:
    """The action units of a cell, or None where they are not known. A JSON list may have numbers."""
    words = _words(row, column)
    if not words and not isinstance(row.get(column), list):
        return None
    try:
        return facs.parse_coded_aus(" ".join(f"AU{word}" if word.isdecimal() else word for word in words))
    except ValueError as error:
        raise ValueError(f"{column}: {error}") from error

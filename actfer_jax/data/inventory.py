"""What a data set of picture files has: its records without their pictures, and what is wrong with its files."""

import hashlib
import logging
import os
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from actfer_jax import facs
from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.config import FieldError
from actfer_jax.data.errors import DataError
from actfer_jax.data.leaks import without
from actfer_jax.data.sources import ALL as ALL
from actfer_jax.data.sources import DataConfig, read_named_set
from actfer_jax.faces import formats
from actfer_jax.faces.images import decode_image, load_image
from actfer_jax.files import as_path, is_remote, reason

log = logging.getLogger(__name__)

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""The words that people's folders and files use for a split, in lower case."""


class Problem(NamedTuple):
    """Something odd in a data set, and what was done about it.

    Attributes:
      file: where it is.
      line: from 1, or None for the whole file.
      what: in words.
    """

    file: str
    line: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f', line {self.line}'}: {self.what}"


class Part(Protocol):
    """A picture that is no file of its own, such as a row of a table. As a text, it is where it is.

    Attributes:
      file: the file that it is part of.
      line: where in it, from 1; None if it has no lines.
    """

    @property
    def file(self) -> Path: ...

    @property
    def line(self) -> int | None: ...

    def read_bytes(self) -> bytes:
        """The picture as a file of its own would have it, in a format that `decode_image` reads."""


@dataclass(frozen=True)
class Record:
    """A sample without its picture.

    Attributes:
      name: unique in the data set.
      picture: its file, or the part of a file that it is.
      reference: its labels are empty where they are those of the data set. `extra["subject"]` is who is shown, where
        that is known.
      split: "" where the data set has no splits.
    """

    name: str
    picture: Path | Part
    reference: Reference
    split: str = ""

    def problem(self, folder: Path, what: str) -> Problem:
        """What is odd about the picture; files are named from `folder`."""
        if isinstance(self.picture, Path):
            return Problem(relative(self.picture, folder), None, what)
        return Problem(relative(self.picture.file, folder), self.picture.line, what)


@dataclass(frozen=True)
class Inventory:
    """The records of every split.

    Attributes:
      labels: the emotions of the data set, in the order of its classes.
      records: in the order of the files.
      problems: what is odd in the files; a row that cannot be used is left out, and is here.
      official: how many records a published data set has, by what is counted: `ALL`, a split or a stratum, or one label
        in it, as "train/fear".
      folders: folders with nothing but the records' pictures.
    """

    labels: tuple[str, ...]
    records: list[Record]
    problems: list[Problem] = field(default_factory=list)
    official: dict[str, int] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True)
class PictureConfig(DataConfig):
    """The choice of samples from a data set of picture files; `directory` is the folder of these."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.directory.strip():
            raise FieldError("directory", "is empty; give the folder of the data set's files")
        try:
            path = as_path(self.directory)
        except ValueError as error:
            raise FieldError("directory", f"{error}") from error
        if is_remote(path) or not path.is_dir():
            raise FieldError("directory", f"is {self.directory!r}, which is no folder on this machine")

    @property
    def folder(self) -> Path:
        return Path(as_path(self.directory))


class Pictures:
    """The records of a split as samples (`data.sources.Source`). Pictures are read when a sample is asked for.

    The order is shuffled, the same each time, so that the first few samples are of every class.

    Raises:
      DataError: the split is empty, or has fewer records than `config.size`.
    """

    def __init__(self, config: DataConfig, inventory: Inventory):
        self.name, self.labels = config.name, inventory.labels
        self.records = [record for record in inventory.records if config.split in (ALL, record.split)]
        random.Random(0).shuffle(self.records)
        problems = inventory.problems
        if problems:
            log.warning(
                "%s has %d problems, the first: %s. python -m actfer_jax.data.check %s --data_dir=%s lists them",
                *(config.directory, len(problems), problems[0], config.name, config.directory),
            )
        if not self.records:
            splits = sorted({record.split for record in inventory.records if record.split})
            there = f"it has {', '.join(splits)}" if splits else "it has none: give data.split=all"
            why = there if inventory.records or not problems else f"it has no records ({problems[0]})"
            raise DataError(f"{config.directory} has no split {config.split!r}; {why}")
        self.excluded: dict[str, dict[str, int]] = {}
        if config.exclude:
            named = [read_named_set(text) for text in config.exclude]
            self.records, self.excluded = without(self.records, named, config.size)
            for text, counts in self.excluded.items():
                found = f"{counts['same']} the same and {counts['similar']} similar"
                log.info("%s: left out of %s: %s pictures of %s", config.name, config.split, found, text)
            if not self.records:
                raise DataError(f"data.exclude leaves nothing of the split {config.split!r} of {config.directory}")
        if len(self.records) < (config.size or 1):
            left = " that data.exclude leaves" if config.exclude else ""
            raise DataError(f"data.size is {config.size}, but {config.split} has {len(self.records)} records{left}")
        self.records = self.records[: config.size]

    def __len__(self) -> int:
        return len(self.records)

    def strata(self, index: int) -> tuple[str, ...]:
        return self.records[index].reference.strata

    def reference(self, index: int) -> Reference:
        """The reference of a sample, without reading its picture."""
        reference = self.records[index].reference
        return replace(reference, labels=reference.labels or self.labels)

    def __getitem__(self, index: int) -> Sample:
        record, reference = self.records[index], self.reference(index)
        return Sample(self.name, record.name, (_load(record.picture),), reference)


def _load(picture: Path | Part) -> NDArray[np.uint8]:
    if isinstance(picture, Path):
        return load_image(picture)
    return decode_image(picture.read_bytes(), str(picture))


def read_text(path: Path) -> str:
    """The content of a file of labels.

    Raises:
      DataError: it does not exist or is not a text; the message says what it is instead.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({reason(error)})") from error
    if what := formats.describe_text(data):
        raise DataError(f"{path}: {what}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from error


def counted(file: str, lines: Mapping[str, Sequence[int | None]], of: str = "rows from here on") -> list[Problem]:
    """One problem for each rule that concerns many rows of a file, from what it says and the lines of the rows."""
    return [Problem(file, there[0], f"{len(there)} {of} {what}") for what, there in lines.items()]


def class_names(words: Iterable[str]) -> dict[str, str]:
    """The class of each word: words of one emotion, such as "Happy" and "happiness", are one class. Its name is the
    first of them in lower case and alphabetical order."""
    names: dict[str, str] = {}
    words = set(words)
    for word in sorted(word.strip().lower() for word in words):
        names.setdefault(facs.normalise_emotion(word), word)
    return {word: names[facs.normalise_emotion(word)] for word in words}


def split_subjects(subjects: Collection[str], validation: float, test: float, seed: int) -> dict[str, str]:
    """The split of each subject. The seed alone decides the order in which subjects fill the parts.

    Args:
      subjects: who is to be divided.
      validation, test: shares of the subjects, rounded to whole ones; the rest is "train".
      seed: another gives other parts.
    """
    order = sorted(set(subjects), key=lambda subject: hashlib.sha256(f"{seed}/{subject}".encode()).digest())
    ends = round(test * len(order)), round(test * len(order)) + round(validation * len(order))
    return {
        subject: "test" if index < ends[0] else "validation" if index < ends[1] else "train"
        for index, subject in enumerate(order)
    }


def relative(path: Path, folder: Path) -> str:
    """A file's name in a report: below the data set's folder, with "/"."""
    return Path(os.path.relpath(path, folder)).as_posix()

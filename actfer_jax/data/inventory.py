"""What a data set of picture files has: its records without their pictures, and what is wrong with its files."""

import hashlib
import logging
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actfer_jax import facs
from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.config import FieldError, Share
from actfer_jax.data.annotations import picture_key, pseudo_mark, read_annotations
from actfer_jax.data.annotators import AnnotationsConfig
from actfer_jax.data.errors import DataError
from actfer_jax.data.files import Problem as Problem
from actfer_jax.data.files import read_text as read_text
from actfer_jax.data.files import relative as relative
from actfer_jax.data.leaks import without
from actfer_jax.data.sources import ALL as ALL
from actfer_jax.data.sources import DataConfig, read_named_set
from actfer_jax.faces.images import decode_image, load_image
from actfer_jax.files import as_path, is_remote

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
    """A sample without its pictures.

    Attributes:
      name: unique in the data set.
      picture: its file, or the part of a file that it is. Of several pictures the last, which the reference is about;
        the picture by which copies are found.
      reference: its labels are empty where they are those of the data set. `extra["subject"]` is who is shown, where
        that is known.
      split: "" where the data set has no splits.
      before: the pictures that are shown before the last, such as the onset of an expression before its apex.
    """

    name: str
    picture: Path | Part
    reference: Reference
    split: str = ""
    before: tuple[Path | Part, ...] = ()

    @property
    def pictures(self) -> tuple[Path | Part, ...]:
        """All pictures, in the order in which they are shown."""
        return (*self.before, self.picture)

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
    """The choice of samples from a data set of picture files; `directory` is the folder of these.

    Attributes:
      annotations: where action units come from that the data set does not have; None for nowhere.
      min_fit: how well the action units of a sample must fit its emotion (`facs.fit`), from 0 to 1; others are left
        out. With 0 it is enough that some are known; None keeps every sample.
    """

    annotations: AnnotationsConfig | None = None
    min_fit: Share | None = None

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

    @property
    def lineage(self) -> tuple[str, ...]:
        return super().lineage + (() if self.annotations is None else (pseudo_mark(self.annotations),))


class Pictures:
    """The records of a split as samples (`data.sources.Source`). Pictures are read when a sample is asked for.

    The order is shuffled, the same each time, so that the first few samples are of every class.

    Raises:
      DataError: the split is empty, or has fewer records than `config.size`.
    """

    def __init__(self, config: DataConfig, inventory: Inventory):
        inventory = annotated(inventory, config)
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
        return Sample(self.name, record.name, tuple(map(_load, record.pictures)), reference)


def _load(picture: Path | Part) -> NDArray[np.uint8]:
    if isinstance(picture, Path):
        return load_image(picture)
    return decode_image(picture.read_bytes(), str(picture))


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


def annotated(inventory: Inventory, config: DataConfig) -> Inventory:
    """The inventory with the action units of `config.annotations` where a record has none, and without the records that
    `config.min_fit` leaves out.

    Raises:
      DataError: the annotator's files cannot be used, or an emotion has no prototype to fit.
    """
    if not isinstance(config, PictureConfig):
        return inventory
    if config.annotations is not None:
        inventory = _with_annotations(inventory, config.annotations, config.folder)
    if config.min_fit is not None:
        kept = [record for record in inventory.records if _fits(record, config.min_fit)]
        log.info("data.min_fit keeps %d of %d records", len(kept), len(inventory.records))
        inventory = replace(inventory, records=kept)
    return inventory


def _with_annotations(inventory: Inventory, config: AnnotationsConfig, folder: Path) -> Inventory:
    title, labels, problems = read_annotations(config, folder)
    found, records = dict[str, str](), list[Record]()
    for record in inventory.records:
        reference = record.reference
        names = dict.fromkeys(picture_key(path, config.path_parts) for path in (record.name, str(record.picture)))
        for key in filter(labels.__contains__, names):
            if key in found:
                raise DataError(
                    f"{folder / config.file}: {key!r} is {found[key]} and {record.name}; raise "
                    f"data.annotations.path_parts (now {config.path_parts}), or leave one of them out"
                )
            found[key] = record.name
            if not reference.has_aus:
                aus = frozenset(au for au, present in labels[key].items() if present)
                reference = replace(reference, aus=aus, known_aus=frozenset(labels[key]), aus_from=title)
        if reference.emotion is None and not reference.has_aus:
            problems.append(Problem(record.name, None, f"has no emotion and no action units by {title}; left out"))
        else:
            records.append(replace(record, reference=reference))
    if others := sorted(labels.keys() - found.keys()):
        what = f"{len(others)} of {len(labels)} pictures are none of the data set, the first {others[0]!r}"
        problems.append(Problem(relative(folder / config.file, folder), None, f"{what}; not used"))
    count = sum(record.reference.aus_from == title for record in records)
    log.info("%d of %d records have their action units from %s", count, len(records), title)
    return replace(inventory, records=records, problems=[*inventory.problems, *problems])


def _fits(record: Record, least: float) -> bool:
    reference = record.reference
    if reference.aus is None or not reference.has_aus or reference.emotion is None:
        return False
    if not least:
        return True
    if facs.normalise_emotion(reference.emotion) not in facs.PROTOTYPES:
        raise DataError(f"{record.name} is {reference.emotion!r}, of which no prototype is known: give data.min_fit 0")
    return facs.fit(reference.emotion, reference.aus, reference.known_aus) >= least

"""FEA-20K (Facial-R1, arXiv 2511.10254): action units, an emotion and a description of faces in seven data sets.

    TEXTS/**/*Train*stage1*.jsonl    {"id", "dataset", "image", "question", "AUs", "labels", "description", ...} a line;
    TEXTS/**/*Test*.jsonl            its authors give no pictures
    DIR/BP4D/...                     the pictures, by source and then by the paths in the items

A source has action units if one of its items has, and then an empty list says that none is present; likewise for its
labels. Its known action units are those that occur in it, and its labels are the choices of its items: those of a
source without labels ask for action units alone.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from actfer_jax import facs
from actfer_jax.agent.episode import Reference
from actfer_jax.config import FieldError, one_of
from actfer_jax.data.errors import DataError
from actfer_jax.data.files import json_rows
from actfer_jax.data.inventory import ALL, Inventory, PictureConfig, Pictures, Problem, Record, read_text, relative
from actfer_jax.files import as_path

OFFICIAL = {ALL: 19_425, "train": 17_737, "test": 1_688}


@dataclass(frozen=True)
class Config(PictureConfig):
    """The choice of items.

    Attributes:
      texts: the folder of the files of items; "" where they lie in `directory`.
      train, test: patterns of the names of these files. The training files of stage 1 are FEA-20K; those of later
        stages are parts of it.
      folders: by source, the folder of its pictures below `directory`, where that is not called like the source.
    """

    split: Annotated[str, one_of("train", "test", ALL)] = "train"
    texts: str = ""
    train: str = "*Train*stage1*.jsonl"
    test: str = "*Test*.jsonl"
    folders: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            as_path(self.texts or ".")
        except ValueError as error:
            raise FieldError("texts", f"{error}") from error


@dataclass(frozen=True)
class _Item:
    """An item of a file, at `line` of it."""

    file: str
    line: int
    split: str
    source: str
    image: str
    aus: frozenset[int]
    label: str | None
    extra: dict[str, Any]


def labels(config: Config) -> tuple[str, ...]:
    """The labels of all sources, in alphabetical order."""
    return inventory(config).labels


def label_sets(config: Config) -> tuple[tuple[str, ...], ...]:
    """The labels of each source."""
    return tuple(dict.fromkeys(record.reference.labels for record in inventory(config).records))


def open_source(config: Config) -> Pictures:
    # Without labels for all: an item has those of its source.
    return Pictures(config, replace(inventory(config), labels=()))


def inventory(config: Config) -> Inventory:
    """
    Raises:
      DataError: there are no files of items.
    """
    problems = list[Problem]()
    items = list(_items(config, problems))
    aus, choices = defaultdict[str, set[int]](set), defaultdict[str, set[str]](set)
    for item in items:
        aus[item.source] |= item.aus
        choices[item.source] |= {item.label} if item.label else set()
    records, times = list[Record](), Counter[str]()
    for item in items:
        if not (aus[item.source] or item.label):
            problems.append(Problem(item.file, item.line, "has neither action units nor a label; left out"))
            continue
        reference = Reference(
            tuple(sorted(choices[item.source])),
            emotion=item.label,
            aus=item.aus if aus[item.source] else None,
            known_aus=frozenset(aus[item.source]) if aus[item.source] else None,
            strata=(item.source,),
            extra=item.extra,
        )
        name = f"{item.source}/{item.image}"
        times[name] += 1
        name += f"#{times[name]}" if times[name] > 1 else ""
        picture = config.folder / config.folders.get(item.source, item.source) / item.image
        records.append(Record(name, picture, reference, item.split))
    return Inventory(tuple(sorted(set().union(*choices.values()))), records, problems, OFFICIAL)


def _items(config: Config, problems: list[Problem]) -> Iterator[_Item]:
    root = Path(as_path(config.texts)) if config.texts else config.folder
    files = {split: sorted(root.rglob(pattern)) for split, pattern in (("train", config.train), ("test", config.test))}
    if not any(files.values()):
        raise DataError(
            f"there is no {root / config.train} or {config.test} below it; data.texts is the folder of FEA-20K's "
            "files, and data.train and data.test are patterns of their names"
        )
    for split, paths in files.items():
        if not paths:
            problems.append(Problem(f"{relative(root, config.folder)}/{getattr(config, split)}", None, "is not there"))
        for path in paths:
            file = relative(path, config.folder)
            for line, row in json_rows(read_text(path), file, problems):
                try:
                    yield _item(row, file, line, split, problems)
                except ValueError as error:
                    problems.append(Problem(file, line, f"{error}; left out"))


def _item(row: dict[str, Any], file: str, line: int, split: str, problems: list[Problem]) -> _Item:
    """
    Raises:
      ValueError: the row is no item.
    """
    source, image = (str(row.get(key) or "").strip() for key in ("dataset", "image"))
    if not re.fullmatch(r"[\w.-]+", source) or not image.strip("/"):
        raise ValueError(f"dataset and image are {source!r} and {image!r}; they must be a name and a path")
    names, words = row.get("AUs") or [], row.get("labels") or []
    if not isinstance(names, list) or not all(re.fullmatch(r"AU\d+", str(name)) for name in names):
        raise ValueError(f"AUs is {str(names)[:60]}; it must be a list of names such as AU4")
    if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError(f"labels is {str(words)[:60]}; it must be a list of words")
    if len(words) > 1:
        problems.append(Problem(file, line, f"has the labels {', '.join(words)}; the first counts"))
    aus = {int(name[2:]) for name in names}
    known = aus & facs.AU_NAMES.keys()
    extra = {key: row[key] for key in ("question", "description") if isinstance(row.get(key), str) and row[key].strip()}
    if others := sorted(aus - known):
        extra["other_aus"] = others  # Which no answer of ours can name.
    label = words[0].strip().lower() if words else None
    return _Item(file, line, split, source, image.lstrip("/"), frozenset(known), label, extra)

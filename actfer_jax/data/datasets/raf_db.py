"""RAF-DB (Li et al., CVPR 2017), basic and compound expressions, read in place.

    DIR/basic/EmoLabel/list_patition_label.txt            train_00001.jpg 5
    DIR/basic/Image/aligned/train_00001_aligned.jpg       100 x 100 pixels
    DIR/basic/Image/original/train_00001.jpg
    DIR/basic/Annotation/manual/train_00001_manu_attri.txt   five points, then gender, race and age

and the same below `DIR/compound`. Later releases spell the list's name `list_partition_label.txt`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

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
    read_text,
    relative,
)

LABELS = {
    "basic": ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"),
    "compound": (
        *("happily surprised", "happily disgusted", "sadly fearful", "sadly angry", "sadly surprised"),
        *("sadly disgusted", "fearfully angry", "fearfully surprised", "angrily surprised", "angrily disgusted"),
        "disgustedly surprised",
    ),
}
"""In the order of their numbers in the list, from 1."""

_BASIC_COUNTS = {"train": (1290, 281, 717, 4772, 1982, 705, 2524), "test": (329, 74, 160, 1185, 478, 162, 680)}
OFFICIAL = {
    "basic": {split: sum(counts) for split, counts in _BASIC_COUNTS.items()}
    | {
        f"{split}/{label}": count
        for split, counts in _BASIC_COUNTS.items()
        for label, count in zip(LABELS["basic"], counts, strict=True)
    },
    "compound": {"train": 3162, "test": 792},
}

_LISTS = ("list_patition_label.txt", "list_partition_label.txt")
_ATTRIBUTES = {
    "gender": ("male", "female", "gender_unsure"),
    "race": ("caucasian", "african-american", "asian"),
    "age": ("age_0-3", "age_4-19", "age_20-39", "age_40-69", "age_70_and_over"),
}


@dataclass(frozen=True)
class Config(PictureConfig):
    """The choice of pictures.

    Attributes:
      part: "basic", one of seven expressions a face, or "compound", one of eleven mixed ones.
      pictures: "aligned" to 100 x 100 pixels, or "original".
    """

    split: Annotated[str, one_of("train", "test", ALL)] = "train"
    part: Annotated[str, one_of(*LABELS)] = "basic"
    pictures: Annotated[str, one_of("aligned", "original")] = "aligned"


def labels(config: Config) -> tuple[str, ...]:
    """The expressions of the part, in its own order."""
    return LABELS[config.part]


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    folder, problems, records = config.folder / config.part, list[Problem](), list[Record]()
    pictures, attributes = folder / "Image" / config.pictures, folder / "Annotation" / "manual"
    has_attributes = attributes.is_dir()
    for stem, label in _rows(folder, config, problems):
        strata: tuple[str, ...] = ()
        if has_attributes:
            try:
                strata = _strata(attributes / f"{stem}_manu_attri.txt")
            except ValueError as error:
                file = relative(attributes / f"{stem}_manu_attri.txt", config.folder)
                problems.append(Problem(file, None, f"{error}; the picture has no strata"))
        suffix = "_aligned" if config.pictures == "aligned" else ""
        reference = Reference((), emotion=label, strata=strata)
        records.append(Record(f"{stem}.jpg", pictures / f"{stem}{suffix}.jpg", reference, stem.split("_")[0]))
    return Inventory(LABELS[config.part], records, problems, OFFICIAL[config.part], (pictures,))


def _rows(folder: Path, config: Config, problems: list[Problem]) -> Iterator[tuple[str, str]]:
    """Stem of the picture and label, by row of the list.

    Raises:
      DataError: there is no list, or its labels begin with 0.
    """
    path = next((folder / "EmoLabel" / name for name in _LISTS if (folder / "EmoLabel" / name).is_file()), None)
    if path is None:
        raise DataError(
            f"there is no {folder / 'EmoLabel' / _LISTS[0]}; data.directory must hold RAF-DB's {config.part}/"
        )
    file, seen, in_folders = relative(path, config.folder), dict[str, int](), False
    for line, row in enumerate(read_text(path).splitlines(), 1):
        if not row.strip():
            continue
        match = re.fullmatch(r"(.*[/\\])?((?:train|test)_\d+)(?:_aligned)?\.jpg\s+(\d+)", row.strip())
        if match is None:
            problems.append(Problem(file, line, f"is {row.strip()[:60]!r}, not a name and a label; left out"))
            continue
        before, stem, number = match[1], match[2], int(match[3])
        if number == 0:
            raise DataError(
                f"{path}, line {line}: the label is 0, and RAF-DB counts from 1. What the numbers of a list derived "
                "from RAF-DB's mean is not known: get the original list"
            )
        if before and not in_folders:
            problems.append(Problem(file, line, f"names are below {before!r} from here on, which is not looked at"))
            in_folders = True
        if number > len(LABELS[config.part]):
            problems.append(Problem(file, line, f"the label is {number}, of {len(LABELS[config.part])}; left out"))
        elif stem in seen:
            problems.append(Problem(file, line, f"{stem}.jpg is in line {seen[stem]} already; left out"))
        else:
            seen[stem] = line
            yield stem, LABELS[config.part][number - 1]


def _strata(path: Path) -> tuple[str, ...]:
    """
    Raises:
      DataError, ValueError: the file does not have five points, and then gender, race and age.
    """
    numbers, strata = read_text(path).split("\n")[5:8], list[str]()
    for number, (what, names) in zip(numbers, _ATTRIBUTES.items(), strict=True):
        if not 0 <= int(number) < len(names):
            raise ValueError(f"the {what} is {int(number)}, of 0 to {len(names) - 1}")
        strata.append(names[int(number)])
    return tuple(strata)

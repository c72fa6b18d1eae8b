"""CASME II (Yan et al., PLOS ONE 2014), read in place: micro-expressions filmed at 200 frames a second.

    DIR/CASME2-coding-20140508.xlsx          (or another date) Subject, Filename, OnsetFrame, ApexFrame, OffsetFrame,
                                             Action Units, Estimated Emotion
    DIR/Cropped/sub01/EP02_01f/reg_img46.jpg         faces, aligned
    DIR/CASME2_RAW_selected/sub01/EP02_01f/img46.jpg whole frames

A sample is a clip, shown by its onset and its apex (`data.micro`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from actfer_jax.config import one_of
from actfer_jax.data.errors import DataError
from actfer_jax.data.files import Problem
from actfer_jax.data.inventory import Inventory, Pictures
from actfer_jax.data.micro import COLUMNS, Clip, MicroConfig, clip_inventory, frames_in, labels_of, text_of
from actfer_jax.data.workbook import read_table

_FIVE = ("disgust", "happiness", "others", "repression", "surprise")
CLASSES = {
    "own": {word: word for word in (*_FIVE, "fear", "sadness")},
    "five": {word: word for word in _FIVE},
    "composite": {
        "happiness": "positive",
        "disgust": "negative",
        "repression": "negative",
        "surprise": "surprise",
    },
}
"""By `classes`: the class of each estimated emotion. In the composite, fear and sadness have none."""
OFFICIAL = {"all": 145, "all/negative": 88, "all/positive": 32, "all/surprise": 25}
"""Of the composite."""

_NOT_IN_COMPOSITE = ("sub04/EP12_01f", "sub05/EP12_03f", "sub24/EP02_07")
_FOLDERS = {"cropped": "Cropped", "raw": "CASME2_RAW_selected"}


@dataclass(frozen=True)
class Config(MicroConfig):
    """The choice of clips.

    Attributes:
      classes: also "five", those that most papers count: disgust, happiness, others, repression and surprise.
      pictures: "cropped" faces, or "raw" frames.
    """

    classes: Annotated[str, one_of(*CLASSES)] = "own"
    pictures: Annotated[str, one_of(*_FOLDERS)] = "cropped"


def labels(config: Config) -> tuple[str, ...]:
    return labels_of(CLASSES[config.classes])


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    """
    Raises:
      DataError: the workbook is not there or is another, or nobody is `config.subject`.
    """
    books = sorted(config.folder.glob("CASME2-coding-*.xlsx"))
    if not books:
        raise DataError(f"there is no {config.folder}/CASME2-coding-*.xlsx; data.directory must hold CASME II")
    problems = [Problem(book.name, None, f"not used, beside {books[-1].name}: give only one") for book in books[:-1]]
    clips, official = _clips(books[-1], config), dict[str, int]()
    if config.classes == "composite":
        clips, official = _of_composite(clips, problems), OFFICIAL
    return clip_inventory(clips, config, CLASSES[config.classes], problems, official)


def _clips(book: Path, config: Config) -> Iterator[Clip]:
    for line, row in read_table(book, COLUMNS):
        subject, clip = f"sub{text_of(row['subject']).zfill(2)}", text_of(row["clip"])
        folder = config.folder / _FOLDERS[config.pictures] / subject / clip
        yield Clip(f"{subject}/{clip}", subject, row, folder, frames_in(folder), book.name, line)


def _of_composite(clips: Iterator[Clip], problems: list[Problem]) -> Iterator[Clip]:
    for clip in clips:
        if clip.name in _NOT_IN_COMPOSITE:
            problems.append(Problem(clip.file, clip.line, f"{clip.name} is not in the composite; left out"))
        else:
            yield clip

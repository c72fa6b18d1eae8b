"""4DME (Li et al., IEEE TAFFC 2022), the grey micro-expression clips of its first release, read in place.

    DIR/4DME_Labelling_Micro_release v1.xlsx   sub_ID, fold_name, Onset, Apex, Offset, AUs, Emotion, a column for each
                                               action unit, and Positive, Negative, Surprise, Repression and Others
    DIR/gray_micro_crop/SUBJECT/CLIP/*.jpg     faces, cropped; the last number in a name is the frame's
    DIR/gray_micro/SUBJECT/CLIP/*.jpg          whole frames

A clip may show several emotions: the columns say which. One with several has no class, and is left out. `4(k)` is an
action unit that its coder was not sure of; it is not known. A sample is a clip, shown by its onset and its apex
(`data.micro`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from actfer_jax.config import one_of
from actfer_jax.data.files import Problem
from actfer_jax.data.inventory import Inventory, Pictures
from actfer_jax.data.micro import Clip, MicroConfig, clip_inventory, frames_in, labels_of, text_of
from actfer_jax.data.workbook import Cells, read_table

BOOK = "4DME_Labelling_Micro_release v1.xlsx"
EMOTIONS = ("positive", "negative", "surprise", "repression", "others")
CLASSES = {
    "own": {word: word for word in EMOTIONS},
    "composite": {word: word for word in ("positive", "negative", "surprise")},
}

_COLUMNS = {
    "subject": "sub_ID",
    "clip": "fold_name",
    "onset": "Onset",
    "apex": "Apex",
    "offset": "Offset",
    "aus": "AUs",
} | {word: word.capitalize() for word in EMOTIONS}
_LABELS = ("aus", *EMOTIONS)
_EXCHANGED = 144
"""This row below the header, from 0, and the next have each other's labels in this release."""
_FOLDERS = {"cropped": "gray_micro_crop", "raw": "gray_micro"}


@dataclass(frozen=True)
class Config(MicroConfig):
    """The choice of clips.

    Attributes:
      pictures: "cropped" faces, or "raw" frames.
    """

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
    rows = list(read_table(config.folder / BOOK, _COLUMNS))
    problems = []
    if len(rows) > _EXCHANGED + 1:
        (line, first), (other, second) = rows[_EXCHANGED : _EXCHANGED + 2]
        for name in _LABELS:
            first[name], second[name] = second[name], first[name]
        problems.append(Problem(BOOK, line, f"has the labels of row {other}, and that row has its own: exchanged"))
    return clip_inventory(_clips(rows, config), config, CLASSES[config.classes], problems, {})


def _clips(rows: list[tuple[int, Cells]], config: Config) -> Iterator[Clip]:
    for line, row in rows:
        subject, clip = text_of(row["subject"]), text_of(row["clip"])
        folder = config.folder / _FOLDERS[config.pictures] / subject / clip
        emotion = "+".join(word for word in EMOTIONS if text_of(row[word]) == "1")
        yield Clip(f"{subject}/{clip}", subject, row | {"emotion": emotion}, folder, frames_in(folder), BOOK, line)

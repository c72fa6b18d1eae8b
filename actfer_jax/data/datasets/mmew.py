"""MMEW (Ben et al., IEEE TPAMI 2022), its micro-expressions, read in place.

    DIR/MMEW_Micro_Exp.xlsx                         Subject, Filename, OnsetFrame, ApexFrame, OffsetFrame, Action Units,
                                                    Estimated Emotion, remarks
    DIR/Micro_Expression/anger/S13-07-001/1.jpg     emotion, clip, frame

A sample is a clip, shown by its onset and its apex (`data.micro`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from actfer_jax.data.inventory import Inventory, Pictures
from actfer_jax.data.micro import (
    COLUMNS,
    Clip,
    MicroConfig,
    clip_inventory,
    composite_of,
    frames_in,
    labels_of,
    text_of,
)
from actfer_jax.data.workbook import read_table

BOOK = "MMEW_Micro_Exp.xlsx"
_EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
CLASSES = {"own": {word: word for word in (*_EMOTIONS, "others")}, "composite": composite_of(_EMOTIONS)}


@dataclass(frozen=True)
class Config(MicroConfig):
    """The choice of clips."""


def labels(config: Config) -> tuple[str, ...]:
    return labels_of(CLASSES[config.classes])


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    """
    Raises:
      DataError: the workbook is not there or is another, or nobody is `config.subject`.
    """
    return clip_inventory(_clips(config), config, CLASSES[config.classes], [], {})


def _clips(config: Config) -> Iterator[Clip]:
    for line, row in read_table(config.folder / BOOK, COLUMNS):
        subject, clip = f"S{text_of(row['subject']).zfill(2)}", text_of(row["clip"])
        folder = config.folder / "Micro_Expression" / text_of(row["emotion"]) / clip
        yield Clip(clip, subject, row, folder, frames_in(folder), BOOK, line)

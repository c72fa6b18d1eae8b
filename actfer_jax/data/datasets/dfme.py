"""DFME (Zhao et al., 2023), read in place: micro-expressions filmed at 200 to 500 frames a second.

    DIR/coding.xlsx            Subject, Filename, OnsetFrame, ApexFrame, OffsetFrame, Emotion
    DIR/CLIP/00001.png         the frames of the clip that Filename names

as a public reader of its challenge has it. Copies differ in their columns, which `columns` names. A sample is a clip,
shown by its onset and its apex (`data.micro`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from actfer_jax.config import FieldError
from actfer_jax.data.inventory import Inventory, Pictures
from actfer_jax.data.micro import Clip, MicroConfig, clip_inventory, composite_of, frames_in, labels_of, text_of
from actfer_jax.data.workbook import read_table


@dataclass(frozen=True)
class Columns:
    """The headings of the columns, or their numbers, from 0. A copy may lack `apex`, `offset` and `aus`."""

    subject: str = "Subject"
    clip: str = "Filename"
    onset: str = "OnsetFrame"
    apex: str = "ApexFrame"
    offset: str = "OffsetFrame"
    aus: str = "AU"
    emotion: str = "Emotion"


@dataclass(frozen=True)
class Config(MicroConfig):
    """The choice of clips.

    Attributes:
      file: the workbook, below `directory`; clips lie beside it.
      columns: how it calls its columns.
      emotions: the words in it that count; clips with others are left out.
    """

    file: str = "coding.xlsx"
    columns: Columns = field(default_factory=Columns)
    emotions: tuple[str, ...] = ("anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.emotions:
            raise FieldError("emotions", "is empty; give the words in the column of emotions that count")


def labels(config: Config) -> tuple[str, ...]:
    return labels_of(_classes(config))


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    """
    Raises:
      DataError: the workbook is not there or is another, or nobody is `config.subject`.
    """
    return clip_inventory(_clips(config), config, _classes(config), [], {})


def _classes(config: Config) -> dict[str, str]:
    words = [word.lower() for word in config.emotions]
    return composite_of(words) if config.classes == "composite" else {word: word for word in words}


def _clips(config: Config) -> Iterator[Clip]:
    book = config.folder / config.file
    for line, row in read_table(book, vars(config.columns), optional=("apex", "offset", "aus")):
        subject, clip = text_of(row["subject"]), text_of(row["clip"])
        folder = book.parent / clip
        yield Clip(clip, subject, row, folder, frames_in(folder), config.file, line)

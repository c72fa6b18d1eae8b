"""SAMM (Davison et al., IEEE Transactions on Affective Computing 2018), read in place: micro-expressions, filmed in
grey at 200 frames a second.

    DIR/SAMM_Micro_FACS_Codes_v2.xlsx   13 lines, then Subject, Filename, Inducement Code, Onset Frame, Apex Frame,
                                        Offset Frame, Duration, Micro, Action Units, Estimated Emotion, ...
    DIR/006/006_1_2/006_05562.jpg       a frame; its number has 5 digits, at times 4

A sample is a clip, shown by its onset and its apex (`data.micro`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from actfer_jax.config import one_of
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

BOOK = "SAMM_Micro_FACS_Codes_v2.xlsx"
_OTHER = {"other": "other", "others": "other"}
_EMOTIONS = ("anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise")
CLASSES = {
    "own": {word: word for word in _EMOTIONS} | _OTHER,
    "five": {word: word for word in ("anger", "contempt", "happiness", "surprise")} | _OTHER,
    "composite": composite_of(_EMOTIONS),
}
"""By `classes`: the class of each estimated emotion, in lower case."""
OFFICIAL = {"all": 133, "all/negative": 92, "all/positive": 26, "all/surprise": 15}
"""Of the composite."""


@dataclass(frozen=True)
class Config(MicroConfig):
    """The choice of clips.

    Attributes:
      classes: also "five", those that most papers count: anger, contempt, happiness, other and surprise.
    """

    classes: Annotated[str, one_of(*CLASSES)] = "own"


def labels(config: Config) -> tuple[str, ...]:
    return labels_of(CLASSES[config.classes])


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    """
    Raises:
      DataError: the workbook is not there or is another, or nobody is `config.subject`.
    """
    official = OFFICIAL if config.classes == "composite" else {}
    return clip_inventory(_clips(config), config, CLASSES[config.classes], [], official)


def _clips(config: Config) -> Iterator[Clip]:
    for line, row in read_table(config.folder / BOOK, COLUMNS):
        subject, clip = text_of(row["subject"]).zfill(3), text_of(row["clip"])
        folder = config.folder / subject / clip
        yield Clip(clip, subject, row, folder, frames_in(folder), BOOK, line)

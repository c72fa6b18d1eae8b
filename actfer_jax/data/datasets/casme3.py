"""CAS(ME)^3, the micro-expressions of its part A (Li et al., IEEE TPAMI 2023), read in place.

    DIR/cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx   Subject, Filename, Onset, Apex, Offset, AU, Objective class, emotion
    DIR/spNO.1/b/color/175.jpg                      person, letter, frame; or, in other copies,
    DIR/spNo.1_b_175/175.jpg                        person, letter and onset, frame

A person may have several clips of one letter: a clip is known by its onset too. The case of folders does not count.
A sample is a clip, shown by its onset and its apex (`data.micro`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from actfer_jax.data.inventory import Inventory, Pictures
from actfer_jax.data.micro import Clip, MicroConfig, clip_inventory, composite_of, frames_in, labels_of, text_of
from actfer_jax.data.workbook import read_table

BOOK = "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx"
_EMOTIONS = ("anger", "disgust", "fear", "happy", "sad", "surprise")
CLASSES = {"own": {word: word for word in (*_EMOTIONS, "others")}, "composite": composite_of(_EMOTIONS)}
OFFICIAL = {
    "own": {"all": 860, "all/disgust": 247, "all/surprise": 184, "all/fear": 83}
    | {"all/anger": 64, "all/sad": 55, "all/happy": 54},
    "composite": {"all": 687, "all/negative": 449, "all/positive": 54, "all/surprise": 184},
}

_COLUMNS = {
    "subject": "Subject",
    "clip": "Filename",
    "onset": "Onset",
    "apex": "Apex",
    "offset": "Offset",
    "aus": "AU",
    "emotion": "emotion",
}


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
    return clip_inventory(_clips(config), config, CLASSES[config.classes], [], OFFICIAL[config.classes])


def _clips(config: Config) -> Iterator[Clip]:
    folders = {path.name.lower(): path for path in config.folder.iterdir() if path.is_dir()}
    frames = cache(frames_in)  # Clips may share a folder.
    for line, row in read_table(config.folder / BOOK, _COLUMNS):
        subject, letter, onset = (text_of(row[name]) for name in ("subject", "clip", "onset"))
        name = f"{subject}_{letter}_{onset}"
        own = folders.get(name.lower())
        folder = folders.get(subject.lower(), config.folder / subject) / letter / "color" if own is None else own
        yield Clip(name, subject, row, folder, frames(folder), BOOK, line)

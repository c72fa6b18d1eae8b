"""RAF-CE, faces of RAF-ML with one of 14 mixed emotions, and action units by coders, read in place.

    DIR/RAFCE_emolabel.txt           0001.jpg 4
    DIR/RAFCE_partition.txt          0001.jpg 0             0 is train, 1 is test, 2 is validation
    DIR/RAFCE_AUlabel.txt            0001.jpg 1+T2+BL18     or null, where there are none
    DIR/aligned/0001_aligned.jpg
    DIR/original/0001.jpg

Its pictures may lie in RAF-AU's folder, beside its own lists.
"""

from dataclasses import dataclass
from typing import Annotated

from actfer_jax.agent.episode import Reference
from actfer_jax.config import FieldError, one_of
from actfer_jax.data import raf
from actfer_jax.data.inventory import ALL, Inventory, PictureConfig, Pictures, Problem, Record

LABELS = (
    *("happily surprised", "happily disgusted", "sadly fearful", "sadly angry", "sadly surprised", "sadly disgusted"),
    *("fearfully angry", "fearfully surprised", "fearfully disgusted", "angrily surprised", "angrily disgusted"),
    *("disgustedly surprised", "happily fearful", "happily sad"),
)
"""In the order of their numbers, from 0."""
PARTITION = ("train", "test", "validation")
OFFICIAL = {ALL: 4549}
OFFICIAL_PARTS = {"train": 2709, "test": 909, "test/happily fearful": 1, "test/happily sad": 8}
"""As users of `PARTITION` count them."""


@dataclass(frozen=True)
class Config(PictureConfig):
    """The choice of pictures.

    Attributes:
      pictures: "aligned" or "original".
      partition: the parts that 0, 1 and 2 stand for in RAFCE_partition.txt. Not all readers agree.
    """

    split: Annotated[str, one_of("train", "validation", "test", ALL)] = "train"
    pictures: Annotated[str, one_of(*raf.PICTURES)] = "aligned"
    partition: tuple[str, ...] = PARTITION

    def __post_init__(self) -> None:
        super().__post_init__()
        if sorted(self.partition) != sorted(PARTITION):
            raise FieldError("partition", f"is {self.partition}; it must have {', '.join(PARTITION)}, in any order")


def labels(config: Config) -> tuple[str, ...]:
    """The 14 mixed emotions, in the order of their numbers."""
    del config
    return LABELS


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    """
    Raises:
      DataError: one of the three lists is not there.
    """
    problems = list[Problem]()
    of_emotions, of_parts, of_aus = (
        raf.read_list(config.folder / f"RAFCE_{name}.txt", "RAF-CE", config.folder, problems)
        for name in ("emolabel", "partition", "AUlabel")
    )
    emotions = raf.read_choices(of_emotions, LABELS, "emotion", problems)
    splits = raf.read_choices(of_parts, config.partition, "part", problems)
    coded = raf.read_codes(of_aus, problems)
    problems += raf.lacking(of_emotions, of_parts, f"they are in the split {ALL!r} only")
    problems += raf.lacking(of_emotions, of_aus, "their action units are not known")
    for other in (of_parts, of_aus):
        problems += raf.lacking(other, of_emotions, "not used")
    folder = raf.picture_folder(config.folder, config.pictures)
    records = []
    for stem, emotion in emotions.items():
        aus, extra = coded.get(stem, (None, {}))
        picture = raf.picture_path(folder, config.pictures, stem)
        records.append(Record(f"{stem}.jpg", picture, Reference((), emotion, aus, extra=extra), splits.get(stem, "")))
    official = OFFICIAL | (OFFICIAL_PARTS if config.partition == PARTITION else {})
    return Inventory(LABELS, records, problems, official, (folder,))

"""RAF-ML (Li and Deng, IJCV 2019), faces in which people see blends of six emotions, read in place.

DIR/EmoLabel/distribution.txt       0001.jpg 0.1 0 0.5 0 0.4 0    the shares of surprise, fear, disgust, happiness,
                                                                  sadness and anger
DIR/EmoLabel/multilabel.txt         0001.jpg 0 0 1 0 1 0          those that count; may be absent
DIR/EmoLabel/partition_label.txt    0001.jpg 0                    0 is train, 1 is test
DIR/Image/aligned/0001_aligned.jpg
DIR/Image/original/0001.jpg
"""

from dataclasses import dataclass
from typing import Annotated

from actfer_jax.agent.episode import Reference
from actfer_jax.config import one_of
from actfer_jax.data import raf
from actfer_jax.data.inventory import ALL, Inventory, PictureConfig, Pictures, Problem, Record

OFFICIAL = {ALL: 4908, "train": 3926, "test": 982}

_PARTITION = ("train", "test")


@dataclass(frozen=True)
class Config(PictureConfig):
    """The choice of pictures.

    Attributes:
      pictures: "aligned" or "original".
    """

    split: Annotated[str, one_of("train", "test", ALL)] = "train"
    pictures: Annotated[str, one_of(*raf.PICTURES)] = "aligned"


def labels(config: Config) -> tuple[str, ...]:
    """Six emotions, in the order of the columns. There is no neutral."""
    del config
    return raf.EMOTIONS


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    """
    Raises:
      DataError: the distributions or the partition are not there.
    """
    problems = list[Problem]()
    listed, judged = raf.read_judgements(config.folder, config.folder, problems)
    partition = raf.read_list(config.folder / "EmoLabel" / "partition_label.txt", "RAF-ML", config.folder, problems)
    splits = raf.read_choices(partition, _PARTITION, "part", problems)
    problems += raf.lacking(listed, partition, f"they are in the split {ALL!r} only")
    problems += raf.lacking(partition, listed, "not used")
    blends = _blends(config, problems)
    folder = raf.picture_folder(config.folder / "Image", config.pictures)
    records = []
    for stem, (emotion, distribution) in judged.items():
        extra = {"distribution": distribution} | ({"labels": blends[stem]} if stem in blends else {})
        picture = raf.picture_path(folder, config.pictures, stem)
        records.append(Record(f"{stem}.jpg", picture, Reference((), emotion, extra=extra), splits.get(stem, "")))
    return Inventory(raf.EMOTIONS, records, problems, OFFICIAL, (folder,))


def _blends(config: Config, problems: list[Problem]) -> dict[str, list[str]]:
    """The emotions that count, by picture; none where there is no such list."""
    path, blends = config.folder / "EmoLabel" / "multilabel.txt", dict[str, list[str]]()
    if not path.is_file():
        return blends
    listed = raf.read_list(path, "RAF-ML", config.folder, problems)
    for stem, (line, words) in listed.rows.items():
        if len(words) == len(raf.EMOTIONS) and set(words) <= {"0", "1"}:
            blends[stem] = [name for name, word in zip(raf.EMOTIONS, words, strict=True) if word == "1"]
        else:
            what = f"is {' '.join(words)[:60]!r}, not {len(raf.EMOTIONS)} times 0 or 1; left out of reference.extra"
            problems.append(Problem(listed.file, line, what))
    return blends

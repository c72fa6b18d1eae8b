"""RAF-AU (Yan et al., ICMI 2020), faces of RAF-ML with action units by coders, read in place.

    DIR/RAFAU_label.txt              0001.jpg 1+2+L12+25    or null, where there are none
    DIR/aligned/0001_aligned.jpg
    DIR/original/0001.jpg

It has no emotions, but RAF-ML has them of the same pictures under the same names. There are no official splits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from actfer_jax.agent.episode import Reference
from actfer_jax.config import FieldError, Seed, Share, one_of
from actfer_jax.data import raf
from actfer_jax.data.inventory import ALL, Inventory, PictureConfig, Pictures, Problem, Record, split_subjects
from actfer_jax.files import as_path

OFFICIAL = {ALL: 4601}
OFFICIAL_EMOTIONS = {
    f"{ALL}/{label}": count for label, count in zip(raf.EMOTIONS, (1008, 353, 1073, 515, 749, 903), strict=True)
}
"""Where each picture has the emotion with the largest share in RAF-ML."""


@dataclass(frozen=True)
class Config(PictureConfig):
    """The choice of pictures.

    Attributes:
      pictures: "aligned" or "original".
      raf_ml: the folder of RAF-ML, to give each picture the emotion that most people saw in it; "" for no emotions.
      validation_share, test_share: shares of the pictures; the rest is "train".
      split_seed: of that division. Who is shown is not known, so that a person may be in two parts.
    """

    split: Annotated[str, one_of("train", "validation", "test", ALL)] = "train"
    pictures: Annotated[str, one_of(*raf.PICTURES)] = "aligned"
    raf_ml: str = ""
    validation_share: Share = 0.1
    test_share: Share = 0.2
    split_seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_share + self.test_share > 1:
            raise FieldError("test_share", f"is {self.test_share}; with validation_share it must be at most 1")
        try:
            as_path(self.raf_ml or ".")
        except ValueError as error:
            raise FieldError("raf_ml", f"{error}") from error


def labels(config: Config) -> tuple[str, ...]:
    """RAF-ML's emotions, or none without it."""
    return raf.EMOTIONS if config.raf_ml else ()


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    """
    Raises:
      DataError: the list of RAF-AU, or of RAF-ML where that is given, is not there.
    """
    problems, judged = list[Problem](), dict[str, raf.JudgedPicture]()
    listed = raf.read_list(config.folder / "RAFAU_label.txt", "RAF-AU", config.folder, problems)
    coded = raf.read_codes(listed, problems)
    official = OFFICIAL
    if config.raf_ml:
        of_raf_ml, judged = raf.read_judgements(Path(as_path(config.raf_ml)), config.folder, problems)
        problems += raf.lacking(listed, of_raf_ml, "they have no emotion")
        official = OFFICIAL | OFFICIAL_EMOTIONS
    folder = raf.picture_folder(config.folder, config.pictures)
    splits = split_subjects(coded, config.validation_share, config.test_share, config.split_seed)
    records = []
    for stem, (aus, extra) in coded.items():
        reference = Reference((), aus=aus, extra=extra)
        if stem in judged:
            emotion, distribution = judged[stem]
            reference = Reference((), emotion, aus, extra=extra | {"distribution": distribution})
        picture = raf.picture_path(folder, config.pictures, stem)
        records.append(Record(f"{stem}.jpg", picture, reference, splits[stem]))
    return Inventory(labels(config), records, problems, official, (folder,))

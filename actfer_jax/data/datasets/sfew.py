"""SFEW 2.0 (Dhall et al., 2015): faces in films, read in place.

    DIR/Train/Train_Aligned_Faces/Angry/*.png      143 x 181 pixels
    DIR/Val/Val_Aligned_Faces/Angry/*.png

as the official archives unpack, with or without the folders Train and Val on top. A later archive of the validation
part unpacks as Val_Aligned_Faces_new. The test part has no labels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from actfer_jax.agent.episode import Reference
from actfer_jax.config import one_of
from actfer_jax.data.errors import DataError
from actfer_jax.data.inventory import ALL, Inventory, PictureConfig, Pictures, Problem, Record, relative

LABELS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
OFFICIAL = {"train": 891, "validation": 431} | {
    f"validation/{label}": count for label, count in zip(LABELS, (77, 23, 46, 72, 84, 73, 56), strict=True)
}

_PARTS = {"Train": "train", "Val": "validation"}


@dataclass(frozen=True)
class Config(PictureConfig):
    """The choice of pictures."""

    split: Annotated[str, one_of("train", "validation", ALL)] = "train"


def labels(config: Config) -> tuple[str, ...]:
    """The names of the folders in lower case."""
    del config
    return LABELS


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    """
    Raises:
      DataError: neither part is there.
    """
    records, problems = list[Record](), list[Problem]()
    for part, split in _PARTS.items():
        found = [folder for folder in _folders(config.folder, part) if folder.is_dir() and _classes(folder)]
        if not found:
            problems.append(Problem(f"{part}/{part}_Aligned_Faces", None, f"is not there; there is no {split} part"))
            continue
        for other in found[1:]:
            what = f"not used, beside {relative(found[0], config.folder)}: give only one"
            problems.append(Problem(relative(other, config.folder), None, what))
        for folder in sorted(child for child in found[0].iterdir() if not child.name.startswith(".")):
            label, name = folder.name.lower(), relative(folder, config.folder)
            if label not in LABELS:
                problems.append(Problem(name, None, f"is none of the classes {', '.join(LABELS)}; left out"))
                continue
            for path in sorted(folder.iterdir()):
                if path.suffix.lower() == ".png":
                    records.append(Record(relative(path, config.folder), path, Reference((), emotion=label), split))
                elif not path.name.startswith("."):
                    problems.append(Problem(relative(path, config.folder), None, "is no .png; left out"))
    if not records:
        raise DataError(
            f"there is no {config.folder / 'Train/Train_Aligned_Faces'}, and nothing of Val; data.directory must hold "
            "SFEW 2.0"
        )
    if test := [path for path in (config.folder / "Test", config.folder / "Test_Aligned_Faces") if path.exists()]:
        problems.append(Problem(test[0].name, None, "the test part has no labels; left out"))
    return Inventory(LABELS, records, problems, OFFICIAL)


def _folders(root: Path, part: str) -> list[Path]:
    """Where a part may lie; the first that is there counts."""
    aligned, new = f"{part}_Aligned_Faces", f"{part}_Aligned_Faces_new"
    return [top / name for top in (root / part, root) for name in (aligned, new, f"{new}/{aligned}")]


def _classes(folder: Path) -> bool:
    return any(child.name.lower() in LABELS for child in folder.iterdir())

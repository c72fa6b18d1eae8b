"""One's own pictures in folders: `DIR/LABEL/*.jpg`, or `DIR/SPLIT/LABEL/*.jpg`.

A folder's name is the emotion of its pictures. With folders such as train, val and test on top, these are the splits;
without, `split` must be "all". Names in upper and lower case are one class, and so are "happy" and "happiness".
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from actfer_jax.agent.episode import Reference
from actfer_jax.config import one_of
from actfer_jax.data.errors import DataError
from actfer_jax.data.inventory import (
    ALL,
    SPLITS,
    Inventory,
    PictureConfig,
    Pictures,
    Problem,
    Record,
    class_names,
    relative,
)

SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .png .webp .avif .heic .heif .bmp .gif .tif .tiff .ppm .pgm".split())
"""The endings of pictures, in lower case; what a file is decides its content."""


@dataclass(frozen=True)
class Config(PictureConfig):
    """The choice of pictures."""

    split: Annotated[str, one_of("train", "validation", "test", ALL)] = "train"


def labels(config: Config) -> tuple[str, ...]:
    """The names of the folders, in lower case and alphabetical order."""
    return inventory(config).labels


def open_source(config: Config) -> Pictures:
    return Pictures(config, inventory(config))


def inventory(config: Config) -> Inventory:
    """
    Raises:
      DataError: folders of splits and of classes lie beside each other.
    """
    root = config.folder
    tops = _folders(root)
    splits = [top for top in tops if top.name.lower() in SPLITS]
    if splits and len(splits) < len(tops):
        other = next(top for top in tops if top not in splits)
        raise DataError(
            f"{root} has the split {splits[0].name} and the class {other.name} beside each other; put every class "
            "below a split, or none"
        )
    if splits:
        found = [(SPLITS[top.name.lower()], folder) for top in tops for folder in _folders(top)]
    else:
        found = [("", folder) for folder in tops]
    names = class_names(folder.name for _, folder in found)
    records, problems = list[Record](), list[Problem]()
    for split, folder in found:
        emotion = names[folder.name]
        if folder.name.lower() != emotion:
            problems.append(Problem(relative(folder, root), None, f"its pictures are read as the class {emotion}"))
        for path in sorted(folder.rglob("*")):
            if not path.is_file() or path.name.startswith("."):
                continue
            name = relative(path, root)
            if path.suffix.lower() in SUFFIXES:
                records.append(Record(name, path, Reference((), emotion=emotion), split))
            else:
                problems.append(Problem(name, None, "does not end like a picture; left out"))
    return Inventory(tuple(sorted(set(names.values()))), records, problems)


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))

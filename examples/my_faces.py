"""A data set of your own: `DIR/LABEL/*.png`, in which the name of each folder is the emotion of its images.

    python -m actfer_jax.evaluate --config=configs/eval/synth_faces.py --config.data.name=examples.my_faces \\
        --config.data.directory=DIR --config.data.size=None --checkpoint=demo --out=evaluation
"""

import random
from dataclasses import dataclass
from pathlib import Path

from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.config import FieldError
from actfer_jax.data.errors import DataError
from actfer_jax.data.sources import DataConfig
from actfer_jax.faces.images import load_image


@dataclass(frozen=True)
class Config(DataConfig):
    """Which images. They have no splits: `split` only says what they are used for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not Path(self.directory or "?").is_dir():
            raise FieldError(
                "directory", f"is {self.directory!r}; it must be a folder with a folder of images for each label"
            )


def labels(config: DataConfig) -> tuple[str, ...]:
    return tuple(sorted(folder.name for folder in Path(config.directory).iterdir() if folder.is_dir()))


def open_source(config: DataConfig) -> "Images":
    return Images(config)


class Images:
    def __init__(self, config: DataConfig):
        self.labels = labels(config)
        self.paths = sorted(Path(config.directory).glob("*/*.png"))
        random.Random(0).shuffle(self.paths)  # so that the first few have every label
        if len(self.paths) < (config.size or 1):
            raise DataError(f"data.size is {config.size}, but {config.directory} has {len(self.paths)} images")
        self.paths = self.paths[: config.size]

    def __len__(self) -> int:
        return len(self.paths)

    def strata(self, index: int) -> tuple[str, ...]:
        return ()

    def __getitem__(self, index: int) -> Sample:
        path = self.paths[index]
        reference = Reference(self.labels, emotion=path.parent.name)
        return Sample("my_faces", f"{path.parent.name}/{path.name}", (load_image(path),), reference)

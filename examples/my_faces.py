"""A data set of one's own: `directory/LABEL/*.png`, in which each folder's name is the emotion of its pictures.

python -m actfer_jax.evaluate --config=configs/eval/synth_faces.py --config.data.name=examples.my_faces \
    --config.data.directory=DIR --config.data.size=100 --checkpoint=demo --out=evaluation
"""

from dataclasses import dataclass
from pathlib import Path

from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.data.errors import DataError
from actfer_jax.data.sources import DataConfig
from actfer_jax.faces.images import load_image


@dataclass(frozen=True)
class Config(DataConfig):
    """Which pictures: these have no splits, so that `split` says nothing but what they are used for."""


def labels(config: DataConfig) -> tuple[str, ...]:
    return tuple(sorted(folder.name for folder in Path(config.directory).iterdir() if folder.is_dir()))


def open_source(config: DataConfig) -> "Pictures":
    return Pictures(config)


class Pictures:
    def __init__(self, config: DataConfig):
        self.labels = labels(config)
        self.paths = sorted(Path(config.directory).glob("*/*.png"))[: config.size]
        if len(self.paths) < (config.size or 1):
            raise DataError(f"data.size is {config.size}, but {config.directory} has {len(self.paths)} pictures")

    def __len__(self) -> int:
        return len(self.paths)

    def is_subtle(self, index: int) -> bool:
        return False

    def __getitem__(self, index: int) -> Sample:
        path = self.paths[index]
        reference = Reference(self.labels, emotion=path.parent.name)
        return Sample("my_faces", f"{path.parent.name}/{path.name}", load_image(path), reference)

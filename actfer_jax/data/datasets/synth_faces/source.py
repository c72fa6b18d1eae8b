"""The rendered faces as a data set: its config section and its samples."""

from dataclasses import dataclass
from typing import Annotated

from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.config import Count, FieldError, one_of
from actfer_jax.data.cache import open_cache
from actfer_jax.data.datasets.synth_faces.builder import load
from actfer_jax.data.datasets.synth_faces.world import DEMO_EMOTIONS
from actfer_jax.data.sources import DataConfig


@dataclass(frozen=True)
class Config(DataConfig):
    """The choice of rendered faces. Any number can be rendered; `directory` stays empty.

    Attributes:
      split: "train", "validation" or "test".
      size: how many samples of the split, at least 1.
    """

    split: Annotated[str, one_of("train", "validation", "test")] = "train"
    size: Count = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.directory:
            raise FieldError(
                "directory",
                f'is {self.directory!r}, but "{self.name}" renders its faces and reads none: leave it empty; '
                "where rendered faces are kept is data.cache_directory",
            )


def labels(config: DataConfig) -> tuple[str, ...]:
    """The emotions that the renderer shows."""
    return DEMO_EMOTIONS


def open_source(config: DataConfig) -> "SynthFacesSource":
    """The faces of a split. Faces missing from the cache are rendered now, with progress.

    Raises:
      DataError, OSError: the cache cannot be used.
    """
    return SynthFacesSource(config)


class SynthFacesSource:
    """Rendered faces as samples."""

    def __init__(self, config: DataConfig):
        self.split = config.split
        size = Config.size if config.size is None else config.size
        self.faces = load(config.split, size, open_cache(config.cache_directory))

    def __len__(self) -> int:
        return len(self.faces)

    def strata(self, index: int) -> tuple[str, ...]:
        return ("subtle",) if self.faces.is_subtle(index) else ("plain",)

    def __getitem__(self, index: int) -> Sample:
        face = self.faces[index]
        reference = Reference(
            labels=DEMO_EMOTIONS,
            emotion=face["emotion"],
            aus=frozenset(face["aus"]),
            fine_aus=frozenset(face["fine"]),
            strata=self.strata(index),
            extra={"subtle": face["subtle"], "deciding_region": face["deciding_region"], "fine": face["fine"]},
        )
        return Sample("synth_faces", f"{self.split}/{index:06d}", (face["image"],), reference)

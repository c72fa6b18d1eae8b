"""Rendered faces, second edition: a face itself says where to look, and half of the faces of every emotion need it.

    data.name = "synth_faces_2"

The world is `synth_faces/second_world.py`; rendering and files are shared with the first edition, `synth_faces`.
"""

from dataclasses import dataclass

from actfer_jax import facs
from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.config import Share
from actfer_jax.data.cache import open_cache
from actfer_jax.data.datasets.synth_faces import source
from actfer_jax.data.datasets.synth_faces.builder import load
from actfer_jax.data.sources import DataConfig


@dataclass(frozen=True)
class Config(source.Config):
    """The choice of rendered faces.

    Attributes:
      subtle: the share of subtle faces, the same in every class.
    """

    subtle: Share = 0.5


def labels(config: DataConfig) -> tuple[str, ...]:
    """All eight emotions, contempt among them."""
    return facs.EMOTIONS


def open_source(config: Config) -> "SecondFacesSource":
    """The faces of a split. Faces missing from the cache are rendered now, with progress.

    Raises:
      DataError, OSError: the cache cannot be used.
    """
    return SecondFacesSource(config)


class SecondFacesSource:
    """Rendered faces of the second edition as samples."""

    def __init__(self, config: Config):
        self.split = config.split
        size = Config.size if config.size is None else config.size
        self.faces = load(config.split, size, open_cache(config.cache_directory), subtle=config.subtle)

    def __len__(self) -> int:
        return len(self.faces)

    def strata(self, index: int) -> tuple[str, ...]:
        return self.faces.strata(index)

    def __getitem__(self, index: int) -> Sample:
        face = self.faces[index]
        region = face["deciding_region"]
        reference = Reference(
            labels=facs.EMOTIONS,
            emotion=face["emotion"],
            aus=frozenset(face["aus"]),
            fine_aus=face["fine"],
            strata=self.strata(index),
            extra={"subtle": face["subtle"], "deciding_region": region, "fine": face["fine"]},
            busy_region=region,
            face_box=tuple(face["box"].tolist()) if face["which"] else None,
        )
        return Sample("synth_faces_2", f"{self.split}/{index:06d}", (face["image"],), reference, which=face["which"])
